/* Scores of known pixels, and parameters with their corrections, as in likelihoods/logistic.py: colours without a colour
 * space, all numbers of a pixel side by side, as networks have them. */
#ifndef SCORES_H
#define SCORES_H

#include "distributions.h"

enum {
    FEW = 16, /* pixels at a time, whose numbers stay in the fastest cache */
    LARGEST = 32767, /* magnitude of a parameter */
    SHIFT_BITS = 10, /* as in likelihoods/layout.py */
    SCORES = 9,      /* these as in likelihoods/mixture.py */
    MAX_STRETCH = 8,
};
static const int SCORE_BITS[SCORES] = {10, 10, 10, 7, 7, 7, 10, 10, 10};

typedef struct { /* room for the numbers of a few pixels */
    int32_t parameters[10 * MAX_COMPONENTS * FEW];
    double weights[MAX_COMPONENTS * FEW], centres[MAX_COMPONENTS * FEW], inverse[MAX_COMPONENTS * FEW];
    uint8_t planes[PLANES][FEW];
} Few;

/* A block of `count` pixels whose parameters are [count][10 M]. */
INLINE Block few_pixels(Few *few, const Mixture *m, const float *parameters, int count) {
    int numbers = 10 * m->components;
    for (int i = 0; i < count; i++)
        for (int p = 0; p < numbers; p++) few->parameters[p * count + i] = (int32_t)parameters[(int64_t)i * numbers + p];
    return (Block){.mixture = m, .parameters = few->parameters, .count = count, .weights = few->weights,
                   .centres = few->centres, .inverse = few->inverse,
                   .planes = {few->planes[0], few->planes[1], few->planes[2]}};
}

INLINE double in_argument_bits(double product) { return floor(product * (1.0 / (1 << ARGUMENT_BITS))); }

/* The nine of pixel i, whose values the block has. */
INLINE void scores_of(Block *b, int i, float *out) {
    const double limit = MAX_STRETCH << ARGUMENT_BITS, zero = ARGUMENT_RANGE << ARGUMENT_BITS, one = 1 << SIGMOID_BITS;
    int components = b->mixture->components;
    double of[SCORES][MAX_COMPONENTS], sums[SCORES] = {0}, total = 0;
    Bin bins[MAX_COMPONENTS];
    for (b->plane = 0; b->plane < PLANES; b->plane++) {
        int value = b->planes[b->plane][i];
        if (b->plane) next_colour(b, i);
        else first_plane(b, i);
        for (int k = 0; k < components; k++) {
            Bin bin = bins[k] = bin_of(b, i, k, value, value, value + 1);
            double direction = floor((bin.high + bin.low - one) * (1.0 / (1 << (SIGMOID_BITS - ARGUMENT_BITS))));
            double distance = floor(bin.slope * (value + 0.5) + bin.start) - zero;
            distance = distance < -zero ? -zero : distance > zero ? zero : distance;
            double stretch = in_argument_bits(direction * distance);
            of[b->plane][k] = direction;
            of[PLANES + b->plane][k] = stretch < limit ? stretch : limit;
        }
        weigh_by(b, i, bins);
    }
    for (int k = 0; k < components; k++) {
        double weight = b->weights[(int64_t)i * components + k];
        of[6][k] = in_argument_bits(of[1][k] * of[0][k]);
        of[7][k] = in_argument_bits(of[2][k] * of[0][k]);
        of[8][k] = in_argument_bits(of[2][k] * of[1][k]);
        for (int s = 0; s < SCORES; s++) sums[s] += weight * of[s][k];
        total += weight;
    }
    for (int s = 0; s < SCORES; s++)
        out[s] = (float)floor(sums[s] / total * (1.0 / (1 << (ARGUMENT_BITS - SCORE_BITS[s]))));
}

INLINE float within(double value) {
    return (float)(value < -LARGEST ? -LARGEST : value > LARGEST ? LARGEST : value);
}

/* The parameters [10 M] of pixel i with its corrections [M + 9]. */
INLINE void correct(const Block *b, int i, const float *corrections, float *out) {
    const Mixture *m = b->mixture;
    const double most = 2 * LARGEST, largest = (1 << m->bits) - 1;
    const double unit = (double)(1 << (INVERSE_SCALE_BITS + MEAN_BITS - SHIFT_BITS)) * (1 << m->bits);
    int components = m->components;
    for (int k = 0; k < components; k++) out[k] = within((double)parameter(b, i, k) + corrections[k]);
    for (int colour = 0; colour < PLANES; colour++) {
        const float *given = corrections + components + 3 * colour;
        int first = components * (1 + 3 * colour);
        for (int k = 0; k < components; k++) {
            double moved = floor(given[0] * unit / (inverse_scale_of(b, i, colour, k) * largest));
            moved = moved < -most ? -most : moved > most ? most : moved;
            out[first + k] = within(parameter(b, i, first + k) + moved);
            for (int part = 1; part < 3; part++) {
                int number = first + part * components + k;
                out[number] = within((double)parameter(b, i, number) + given[part]);
            }
        }
    }
}

#endif
