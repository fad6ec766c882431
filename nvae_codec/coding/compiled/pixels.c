/* The pixels of a block: distributions, the probabilities of decisions, and what is learnt of them.
 *
 * What is computed here is computed by `likelihoods/` and `coding/learning.py`, too, number by number; docs/arithmetic.md
 * has the formulas. Every number is an integer, or a double made by single IEEE 754 operations (+ - * / sqrt floor) in
 * the order written. So products and sums must not be contracted, nor sums reordered: see `build.py`.
 *
 * A block is n pixels whose planes are coded one after the other, all pixels of a plane together. M are components, E
 * experts, F features.
 */
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where a function may be compiled several times for the sake of wider registers; what it computes is the same. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define WIDE __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef WIDE
#define WIDE
#endif
#ifndef SOURCE
#define SOURCE "" /* what this file was when it was compiled */
#endif

enum {
    /* As in likelihoods/layout.py and likelihoods/tables.py. */
    UNIT_BITS = 14,
    MEAN_BITS = 12,
    LOG_SCALE_BITS = 10,
    LOG_SCALE_MIN = -7,
    WEIGHT_BITS = 20,
    SIGMOID_BITS = 24,
    ARGUMENT_BITS = 12,
    ARGUMENT_RANGE = 16,
    SIGMOIDS = 2 * (ARGUMENT_RANGE << ARGUMENT_BITS) + 1,
    INVERSE_SCALE_BITS = 12,
    COEFFICIENTS = 1 << 16,
    DIRECTION_BITS = 14,
    MASS_BITS = 24,
    LEAST_MASS = 1 << 20,
    LEAST_OWN_MASS = 1 << 13,
    LEAST_MIXED_MASS = LEAST_OWN_MASS << 10,
    LANES = 4,
    PORTION_BITS = 10,
    VALUES = 256,
    EDGES = VALUES + 1,
    PLANES = 3,
    MAX_COMPONENTS = 64,
    /* As in coding/learning.py. */
    ERROR_BITS = 4,
    ERROR_LIMIT = 1023,
    UNKNOWN = -32768,
    VALUE_LIMIT = 640,
    RATIO_BITS = 4,
    MAX_RATIO = 255,
    COEFFICIENT_BITS = 12,
    COEFFICIENT_LIMIT = 1 << 14,
    SCORE_LIMIT = 1 << 20,
    MAX_NEIGHBOURS = 20,
    MAX_FEATURES = 64,
    MAX_EXPERTS = 12,
    SIZES = 12,
    RATIOS = 6,
    CONTEXTS = SIZES * RATIOS,
    LOG_PARTS = 2048,
    MAX_THREADS = 16,
};

typedef struct { /* the tables of a mixture, and its shape */
    int32_t components, bits, residual, weights, inverse_scales;
    const double *weight, *inverse_scale, *coefficient;
    const float *sigmoid;
} Mixture;

typedef struct { /* of an image that comes from another colour space: colour/spaces.py */
    double of_green, of_blue;
    const double *edges_of_cr, *lines, *edges_of_cb, *grey; /* [256][257], [256][256], [2][257], [256][256] */
} Space;

typedef struct { /* how errors are predicted, and what experts make of it */
    int32_t neighbours, valued, crossed, near, experts, rate, memory, nearby;
    int32_t shift[MAX_EXPERTS], narrowing[MAX_EXPERTS]; /* in halves of what is predicted; in 32nds */
    double coarse, ridge, sizes[SIZES - 1], ratios[RATIOS - 1];
    const double *logarithms; /* of 1 + i / 2048, in 2**-26 */
} Rule;

typedef struct { /* of one plane in one kind of phase; whole numbers */
    double products[MAX_FEATURES][MAX_FEATURES]; /* the lower triangle */
    double targets[MAX_FEATURES];
    int32_t coefficients[MAX_FEATURES];
    int32_t scores[CONTEXTS][MAX_EXPERTS];
} Learnt;

typedef struct { /* planes of all tiles side by side, with margins */
    int16_t *errors[PLANES], *values[PLANES];
    uint8_t *ratios[PLANES];
    int8_t *gains[PLANES]; /* [..][experts] */
} Canvas;

typedef struct { /* sums over a part of a block: whole numbers, so that the parts do not matter */
    double products[MAX_FEATURES][MAX_FEATURES], targets[MAX_FEATURES];
    int64_t gained[CONTEXTS][MAX_EXPERTS], seen[CONTEXTS];
} Sums;

typedef struct {
    const Mixture *mixture;
    const Rule *rule;
    const Space *space;        /* none: of grey and RGB */
    const int32_t *parameters; /* [10 M][n] */
    const int32_t *at; /* places on the canvas */
    const int32_t *neighbours;
    int32_t count, plane, threads;
    uint8_t *planes[PLANES], *clipped;                 /* [n] */
    double *weights, *centres, *inverse;               /* [n][M] */
    double *across, *blue, *blue_scale, *blue_on_line; /* [n][M], of chroma */
    int32_t *prefix;                                   /* of the value that is being decoded, [n] */
    double *low, *middle, *high;                       /* [n] */
    /* Of its distribution: what an expert's component has below an edge is weight * sigmoid[floor(slope * edge + start)].
     * Components without weight are left out; there are `active` others of every expert. */
    int64_t room;                                      /* for the terms of a pixel: LANES at a time */
    double *slopes, *starts, *term_weights;            /* [n][room] */
    double *own_weights;                               /* an expert's, [n][M] */
    int32_t *active;                                   /* [n] */
    int16_t *features;                                 /* [n][MAX_FEATURES] */
    double *mean, *variance, *shift;                   /* [n] */
    int32_t *context;                                  /* [n] */
    double *portions;                                  /* [n][MAX_EXPERTS] */
    Sums *sums;                                        /* [MAX_THREADS] */
} Block;

/* ---- Parameters to distributions: likelihoods/logistic.py and likelihoods/chroma.py ---- */

static double looked_up(const double *table, int64_t length, int64_t index) {
    return table[index < 0 ? 0 : index >= length ? length - 1 : index];
}

static int32_t parameter(const Block *b, int i, int number) { return b->parameters[(int64_t)number * b->count + i]; }

static double mean_of(const Block *b, int i, int plane, int k) {
    const Mixture *m = b->mixture;
    double unit = ((1 << m->bits) - 1) * (double)(1 << (UNIT_BITS - MEAN_BITS));
    return parameter(b, i, m->components * (1 + 3 * plane) + k) * unit;
}

static double inverse_scale_of(const Block *b, int i, int plane, int k) {
    const Mixture *m = b->mixture;
    int32_t log_scale = parameter(b, i, m->components * (2 + 3 * plane) + k);
    return looked_up(m->inverse_scale, m->inverse_scales, log_scale - LOG_SCALE_MIN * (1 << LOG_SCALE_BITS));
}

static double slope_of(const Block *b, int i, int slot, int k) {
    const Mixture *m = b->mixture;
    return looked_up(m->coefficient, COEFFICIENTS, parameter(b, i, m->components * (3 + 3 * slot) + k) + COEFFICIENTS / 2);
}

static double position_of(const Mixture *m, int value) {
    return (2.0 * value - ((1 << m->bits) - 1)) * (1 << UNIT_BITS);
}

static double shifted(double slope, double distance) { return floor(slope * distance * (1.0 / (1 << UNIT_BITS))); }

/* The mean of a component, given the positions of the colours before. */
static double centre_of(const Block *b, int i, int plane, int k, const double *known) {
    double centre = mean_of(b, i, plane, k);
    for (int term = 0; term < plane; term++) {
        double distance = known[term] - (b->mixture->residual ? mean_of(b, i, term, k) : 0);
        centre += shifted(slope_of(b, i, plane + term - 1, k), distance);
    }
    return centre;
}

static void first_plane(Block *b, int i) {
    const Mixture *m = b->mixture;
    int32_t largest = parameter(b, i, 0);
    for (int k = 1; k < m->components; k++) {
        int32_t logit = parameter(b, i, k);
        largest = logit > largest ? logit : largest;
    }
    for (int k = 0; k < m->components; k++) {
        int64_t to = (int64_t)i * m->components + k;
        b->weights[to] = looked_up(m->weight, m->weights, (int64_t)largest - parameter(b, i, k));
        b->centres[to] = mean_of(b, i, 0, k);
        b->inverse[to] = inverse_scale_of(b, i, 0, k);
    }
}

static void next_colour(Block *b, int i) {
    const Mixture *m = b->mixture;
    double known[2] = {position_of(m, b->planes[0][i]), 0};
    if (b->plane == 2) known[1] = position_of(m, b->planes[1][i]);
    for (int k = 0; k < m->components; k++) {
        int64_t to = (int64_t)i * m->components + k;
        b->centres[to] = centre_of(b, i, b->plane, k, known);
        b->inverse[to] = inverse_scale_of(b, i, b->plane, k);
    }
}

static void red_chroma(Block *b, int i) {
    const Mixture *m = b->mixture;
    const Space *s = b->space;
    const double one = 1.0 / (1 << DIRECTION_BITS);
    int red = b->planes[0][i];
    b->clipped[i] = red == 0 || red == VALUES - 1;
    for (int k = 0; k < m->components; k++) {
        int64_t to = (int64_t)i * m->components + k;
        double known[2] = {position_of(m, red), 0};
        double green = known[1] = centre_of(b, i, 1, k, known), blue = centre_of(b, i, 2, k, known);
        double green_scale = inverse_scale_of(b, i, 1, k), blue_scale = inverse_scale_of(b, i, 2, k);
        double blue_on_green = slope_of(b, i, 2, k);
        double across = floor((s->of_green * green + s->of_blue * blue) * one);
        double with_green = blue_on_green * s->of_blue + s->of_green * (1 << UNIT_BITS);
        with_green = floor(with_green * blue_scale * (1.0 / (1 << UNIT_BITS)));
        double by_blue = s->of_blue * green_scale;
        double with_green_squared = with_green * with_green, by_blue_squared = by_blue * by_blue;
        double squared = with_green_squared + by_blue_squared;
        double both = sqrt(squared);
        double on_line = blue_on_green * with_green * blue_scale;
        double by_blue_alone = by_blue * green_scale * (1 << UNIT_BITS);
        on_line = on_line + by_blue_alone;
        b->blue_on_line[to] = floor(on_line * (1 << DIRECTION_BITS) / squared);
        b->blue[to] = blue;
        b->across[to] = across;
        b->blue_scale[to] = b->clipped[i] ? blue_scale : floor(both / -s->of_green);
        b->centres[to] = b->clipped[i] ? green : across;
        b->inverse[to] = b->clipped[i] ? green_scale : floor(green_scale * blue_scale * (1 << DIRECTION_BITS) / both);
    }
}

static void blue_chroma(Block *b, int i) {
    const Mixture *m = b->mixture;
    int red = b->planes[0][i], cr = b->planes[1][i]; /* `cr` is green where red is clipped */
    double line = b->space->lines[red * VALUES + cr], known[2] = {position_of(m, red), position_of(m, cr)};
    for (int k = 0; k < m->components; k++) {
        int64_t to = (int64_t)i * m->components + k;
        b->centres[to] = b->clipped[i] ? centre_of(b, i, 2, k, known)
                                       : b->blue[to] + shifted(b->blue_on_line[to], line - b->across[to]);
        b->inverse[to] = b->blue_scale[to];
    }
}

/* Where the values from `value` on begin, in steps of edges. */
static double place_of(const Block *b, int i, int value) {
    const Space *s = b->space;
    if (!s || b->plane == 0) return value;
    int red = b->planes[0][i];
    double position = b->plane == 1
                          ? s->edges_of_cr[red * EDGES + value]
                          : floor((s->edges_of_cb[b->clipped[i] * EDGES + value] + s->grey[red * VALUES + b->planes[1][i]]) * 0.5);
    return position * (1.0 / (1 << (UNIT_BITS + 1))) + VALUES / 2;
}

/* ---- Masses ---- */

/* In units of the table's index an edge e lies at ((2 e - 2**bits) << 14) inverse unit. All products are exact: integers
 * below 2**53 times a power of two. */
static void term_of(const Mixture *m, double centre, double inverse, double *slope, double *start) {
    const double unit = 1.0 / (1 << (UNIT_BITS + INVERSE_SCALE_BITS - ARGUMENT_BITS)) / (1 << m->bits);
    const double first = centre + (double)(1 << m->bits) * (1 << UNIT_BITS);
    *slope = inverse * (1 << (UNIT_BITS + 1)) * unit;
    *start = 0.5 + (ARGUMENT_RANGE << ARGUMENT_BITS) - first * inverse * unit;
}

static double sigmoid_at(const Mixture *m, double slope, double start, double place) {
    const double last = SIGMOIDS - 1;
    double index = slope * place + start;
    index = index > 0 ? index : 0;
    index = index < last ? index : last;
    return m->sigmoid[(int32_t)index];
}

typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));
typedef int64_t Masks __attribute__((vector_size(LANES * sizeof(int64_t))));
typedef int32_t Indices __attribute__((vector_size(LANES * sizeof(int32_t))));

/* A sum of integers below 2**53: its order does not matter, and processors add several at a time. */
WIDE static double sum_at(const float *sigmoid, const double *slopes, const double *starts, const double *weights,
                          int count, double place) {
    const Doubles last = {SIGMOIDS - 1, SIGMOIDS - 1, SIGMOIDS - 1, SIGMOIDS - 1}, none = {0};
    Doubles totals = {0};
    for (int k = 0; k < count; k += LANES) {
        Doubles slope, start, weight;
        memcpy(&slope, slopes + k, sizeof slope), memcpy(&start, starts + k, sizeof start);
        memcpy(&weight, weights + k, sizeof weight);
        Doubles index = slope * place + start;
        index = (Doubles)((Masks)index & (index > none));
        Masks inside = index < last;
        index = (Doubles)(((Masks)index & inside) | ((Masks)last & ~inside));
        Indices at = __builtin_convertvector(index, Indices);
        Doubles found = {sigmoid[at[0]], sigmoid[at[1]], sigmoid[at[2]], sigmoid[at[3]]};
        totals += weight * found;
    }
    return (totals[0] + totals[1]) + (totals[2] + totals[3]);
}

static int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

/* The terms of the distribution that a plane's value is coded with: the network's or, with `learnt`, the mixture of all
 * experts. */
static void mix(Block *b, int i, const Learnt *learnt) {
    const Mixture *m = b->mixture;
    const Rule *r = b->rule;
    int64_t first = (int64_t)i * m->components, to = i * b->room;
    int kept[MAX_COMPONENTS], active = 0, experts = learnt ? r->experts : 1, count = 0;
    for (int k = 0; k < m->components; k++) {
        double weight = learnt ? floor(b->weights[first + k] * r->coarse) : b->weights[first + k];
        if (weight == 0) continue;
        b->own_weights[first + active] = weight;
        kept[active++] = k;
    }
    for (int e = 0; e < experts; e++) {
        double portion = learnt ? b->portions[(int64_t)i * MAX_EXPERTS + e] : 1;
        double shift = learnt ? floor(b->shift[i] * r->shift[e] * 0.5) : 0;
        for (int k = 0; k < active; k++, count++) {
            double inverse = b->inverse[first + kept[k]];
            if (learnt && r->narrowing[e] != 32) inverse = floor(inverse * r->narrowing[e] * (1.0 / 32));
            term_of(m, b->centres[first + kept[k]] + shift, inverse, &b->slopes[to + count], &b->starts[to + count]);
            b->term_weights[to + count] = b->own_weights[first + k] * portion;
        }
    }
    for (; count % LANES; count++) b->slopes[to + count] = b->starts[to + count] = b->term_weights[to + count] = 0;
    b->active[i] = active;
}

static double least_mass(const Learnt *learnt) { return learnt ? LEAST_MIXED_MASS : LEAST_MASS; }

static double mass_below(const Block *b, int i, const Learnt *learnt, int value) {
    int64_t at = i * b->room;
    int count = padded(b->active[i] * (learnt ? b->rule->experts : 1));
    double mass = sum_at(b->mixture->sigmoid, b->slopes + at, b->starts + at, b->term_weights + at, count, place_of(b, i, value));
    return mass + value * least_mass(learnt);
}

static double whole_mass(const Block *b, int i, const Learnt *learnt) {
    double all = 0;
    for (int k = 0; k < b->active[i] * (learnt ? b->rule->experts : 1); k++) all += b->term_weights[i * b->room + k];
    return all * (1 << SIGMOID_BITS) + (1 << b->mixture->bits) * least_mass(learnt);
}

/* The components' weights once the value of the plane is known (Bayes' rule), the largest 2**20. */
static void weigh(Block *b, int i) {
    const Mixture *m = b->mixture;
    int value = b->planes[b->plane][i];
    int64_t first = (int64_t)i * m->components;
    double product[MAX_COMPONENTS], largest = 0;
    double begin = place_of(b, i, value), end = place_of(b, i, value + 1);
    for (int k = 0; k < m->components; k++) {
        double slope, start;
        term_of(m, b->centres[first + k], b->inverse[first + k], &slope, &start);
        double low = value ? sigmoid_at(m, slope, start, begin) : 0;
        double high = value < (1 << m->bits) - 1 ? sigmoid_at(m, slope, start, end) : 1 << SIGMOID_BITS;
        product[k] = (high - low + 1) * b->weights[first + k];
        largest = product[k] > largest ? product[k] : largest;
    }
    for (int k = 0; k < m->components; k++)
        b->weights[first + k] = floor(product[k] / largest * (1 << WEIGHT_BITS));
}

/* ---- Learning: coding/learning.py ---- */

/* The mean, in sixteenths of a level, and the variance, in their squares. */
static void moments(Block *b, int i) {
    const Mixture *m = b->mixture;
    int64_t first = (int64_t)i * m->components;
    const double unit = 1.0 / (1 << (UNIT_BITS + 1 - ERROR_BITS));
    const double scale_unit = (double)(1 << (INVERSE_SCALE_BITS - 1 + ERROR_BITS)) * (1 << m->bits);
    double all = 0, mean = 0, variance = 0;
    for (int k = 0; k < m->components; k++) {
        all += b->weights[first + k];
        mean += b->weights[first + k] * b->centres[first + k];
    }
    mean = floor(mean / all * unit);
    for (int k = 0; k < m->components; k++) {
        double inverse = b->inverse[first + k], scale = scale_unit / (inverse > 1 ? inverse : 1), off = floor(b->centres[first + k] * unit) - mean;
        double square = scale * scale * 3.25, apart = off * off;
        variance += (square + apart) * b->weights[first + k];
    }
    variance = floor(variance / all);
    b->mean[i] = mean;
    b->variance[i] = variance < 1 ? 1 : variance > 1e9 ? 1e9 : variance;
}

static int features_of(const Rule *r, int plane) {
    return r->neighbours + r->valued + (plane ? r->crossed : 0) + plane + 1;
}

static double clamped(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }

static void predict(Block *b, int i, const Learnt *learnt, const Canvas *canvas) {
    const Rule *r = b->rule;
    int plane = b->plane, at = b->at[i], n = 0, near = 0, ratios = 0, gains[MAX_EXPERTS] = {0};
    int16_t *f = b->features + (int64_t)i * MAX_FEATURES;
    for (int j = 0; j < r->neighbours; j++) {
        int there = at + b->neighbours[j], value = canvas->values[plane][there];
        f[n++] = canvas->errors[plane][there];
        if (plane && j < r->crossed) f[n++] = canvas->errors[plane - 1][there];
        if (j < r->valued) f[n++] = (int16_t)(value == UNKNOWN ? 0 : clamped(value - b->mean[i], VALUE_LIMIT));
        if (j < r->near && value != UNKNOWN) {
            const int8_t *gained = canvas->gains[plane] + (int64_t)there * r->experts;
            near++, ratios += canvas->ratios[plane][there];
            for (int e = 0; e < r->experts; e++) gains[e] += gained[e];
        }
    }
    for (int j = 0; j < plane; j++) {
        f[n++] = canvas->errors[j][at];
        near += 2, ratios += 2 * canvas->ratios[j][at];
    }
    f[n++] = 1 << ERROR_BITS;
    int64_t sum = 0;
    for (int j = 0; j < n; j++) sum += (int64_t)learnt->coefficients[j] * f[j];
    /* Sixteenths of a level times 2**-12 to positions; at most three standard deviations. */
    double limit = floor(sqrt(b->variance[i]) * (3 << (UNIT_BITS + 1 - ERROR_BITS)));
    b->shift[i] = clamped(floor(sum * 0.5), limit);
    int size = 0, ratio = near ? 0 : RATIOS / 2;
    while (size < SIZES - 1 && b->variance[i] >= r->sizes[size]) size++;
    while (near && ratio < RATIOS - 1 && ratios >= r->ratios[ratio] * near) ratio++;
    b->context[i] = size * RATIOS + ratio;
    const int32_t *scores = learnt->scores[b->context[i]];
    int64_t score_of[MAX_EXPERTS], best = INT64_MIN;
    for (int e = 0; e < r->experts; e++) {
        score_of[e] = (int64_t)scores[e] + gains[e] * r->nearby;
        best = score_of[e] > best ? score_of[e] : best;
    }
    double *portions = b->portions + (int64_t)i * MAX_EXPERTS, all = 0;
    for (int e = 0; e < r->experts; e++) {
        portions[e] = looked_up(b->mixture->weight, b->mixture->weights, best - score_of[e]);
        all += portions[e];
    }
    for (int e = 0; e < r->experts; e++) portions[e] = floor(portions[e] * (1 << PORTION_BITS) / all);
}

static double logarithm(const Rule *r, double x) { /* natural, in 2**-26; x is positive */
    int exponent;
    double part = frexp(x, &exponent) * 2 - 1;
    return (exponent - 1) * 46516319.0 + r->logarithms[(int)(part * LOG_PARTS)];
}

/* What each expert would have gained over all together, in 2**-10. */
static void gains(const Block *b, int i, const Canvas *canvas, int64_t *gained) {
    const Rule *r = b->rule;
    int value = b->planes[b->plane][i], last = (1 << b->mixture->bits) - 1;
    double begin = place_of(b, i, value), end = place_of(b, i, value + 1), masses[MAX_EXPERTS], all = 0, mixed = 0;
    int64_t first = (int64_t)i * b->mixture->components, at = i * b->room;
    int active = b->active[i];
    for (int e = 0; e < r->experts; e++) {
        double mass = LEAST_OWN_MASS, portion = b->portions[(int64_t)i * MAX_EXPERTS + e];
        for (int k = 0; k < active; k++) {
            double slope = b->slopes[at + e * active + k], start = b->starts[at + e * active + k];
            double low = value ? sigmoid_at(b->mixture, slope, start, begin) : 0;
            double high = value < last ? sigmoid_at(b->mixture, slope, start, end) : 1 << SIGMOID_BITS;
            mass += b->own_weights[first + k] * (high - low);
        }
        masses[e] = mass;
        all += portion;
        mixed += portion * mass;
    }
    double of_mixed = logarithm(r, mixed / all);
    int8_t *here = canvas->gains[b->plane] + (int64_t)b->at[i] * r->experts;
    for (int e = 0; e < r->experts; e++) {
        double gain = floor((logarithm(r, masses[e]) - of_mixed) * (1.0 / 65536));
        gained[e] += (int64_t)gain;
        here[e] = (int8_t)clamped(floor(gain * (1.0 / 64)), 127);
    }
}

static void put(Block *b, int i, const Canvas *canvas, double *error) {
    const Mixture *m = b->mixture;
    int value = b->planes[b->plane][i], at = b->at[i];
    double middle = (place_of(b, i, value) + place_of(b, i, value + 1) - (1 << m->bits)) * (1 << UNIT_BITS);
    middle = clamped(floor(middle * (1.0 / (1 << (UNIT_BITS + 1 - ERROR_BITS)))), 32767);
    *error = clamped(middle - b->mean[i], ERROR_LIMIT);
    double ratio = floor(fabs(*error) * (1 << RATIO_BITS) / sqrt(b->variance[i] + 20));
    canvas->values[b->plane][at] = (int16_t)middle;
    canvas->errors[b->plane][at] = (int16_t)*error;
    canvas->ratios[b->plane][at] = (uint8_t)(ratio > MAX_RATIO ? MAX_RATIO : ratio);
}

/* The coefficients with the least weighted squares of errors: Cholesky's decomposition, column by column. */
static void solve(Learnt *learnt, int n, double ridge) {
    double A[MAX_FEATURES][MAX_FEATURES], x[MAX_FEATURES];
    for (int i = 0; i < n; i++) {
        memcpy(A[i], learnt->products[i], (i + 1) * sizeof(double));
        A[i][i] += ridge;
        x[i] = learnt->targets[i];
    }
    for (int k = 0; k < n; k++) {
        double pivot = sqrt(A[k][k] > 1 ? A[k][k] : 1), column[MAX_FEATURES];
        A[k][k] = pivot;
        x[k] = x[k] / pivot;
        for (int i = k + 1; i < n; i++) column[i] = A[i][k] = A[i][k] / pivot;
        for (int i = k + 1; i < n; i++) {
            x[i] -= column[i] * x[k];
            for (int j = k + 1; j <= i; j++) A[i][j] -= column[i] * column[j];
        }
    }
    for (int k = n - 1; k >= 0; k--) {
        x[k] = x[k] / A[k][k];
        for (int i = 0; i < k; i++) x[i] -= A[k][i] * x[k];
    }
    for (int k = 0; k < n; k++)
        learnt->coefficients[k] = (int32_t)clamped(floor(x[k] * (1 << COEFFICIENT_BITS) + 0.5), COEFFICIENT_LIMIT);
}

static int64_t floor_divided(int64_t a, int64_t b) { return a / b - (a % b != 0 && a < 0); } /* b > 0 */

static void score(Learnt *learnt, const Rule *r, int context, int64_t seen, const int64_t *gained) {
    int64_t first = 0;
    for (int e = 0; e < r->experts; e++) {
        int64_t score = floor_divided((int64_t)learnt->scores[context][e] * r->memory, r->memory + seen);
        score += floor_divided(gained[e] * r->rate, 256);
        if (e == 0) first = score;
        learnt->scores[context][e] = (int32_t)clamped((double)(score - first), SCORE_LIMIT);
    }
}

/* ---- Threads: the pixels of a block in parts ---- */

enum { FEWEST = 128, SPINS = 100000 }; /* pixels that are worth a thread; looks for work before a helper sleeps */

typedef struct {
    Block *block;
    Learnt *learnt;
    const Canvas *canvas;
    const uint8_t *values;
    const int32_t *found;
    float *masses;
    int bit;
} Task;

typedef void Work(const Task *task, int part, int first, int last);

/* Helpers that wait for work: a little while awake, as the next is often near, then asleep. One caller at a time. */
static struct {
    pthread_mutex_t taken, lock;
    pthread_cond_t wake;
    atomic_int turn, left;
    int helpers, threads;
    pid_t process; /* threads do not survive a fork */
    Work *work;
    const Task *task;
    int count;
} pool = {.taken = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int begin_of(int part, int parts, int count) { return (int)((int64_t)count * part / parts); }

static void do_part(int part) {
    int threads = pool.threads;
    pool.work(pool.task, part, begin_of(part, threads, pool.count), begin_of(part + 1, threads, pool.count));
}

static void *helper(void *number) {
    int part = (int)(intptr_t)number, turn = 0;
    fesetenv(FE_DFL_ENV);
    for (;;) {
        int spins = 0;
        while (atomic_load_explicit(&pool.turn, memory_order_acquire) == turn && spins < SPINS) spins++;
        if (spins == SPINS) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&pool.turn) == turn) pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        turn = atomic_load(&pool.turn);
        if (part < pool.threads) do_part(part);
        atomic_fetch_sub(&pool.left, 1);
    }
    return NULL;
}

static void hire(int helpers) {
    if (pool.process != getpid()) pool.helpers = 0, pool.process = getpid(), atomic_store(&pool.turn, 0);
    while (pool.helpers < helpers) {
        pthread_t thread;
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &detached, helper, (void *)(intptr_t)(pool.helpers + 1));
        pthread_attr_destroy(&detached);
        if (failed) return;
        pool.helpers++;
    }
}

/* Returns in how many parts the work was done: in one if there is little to do, or another caller has the helpers. */
static int shared(const Task *task, Work *work) {
    int count = task->block->count, threads = task->block->threads;
    if (threads > count / FEWEST) threads = count / FEWEST;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&pool.taken)) {
        work(task, 0, 0, count);
        return 1;
    }
    if (atomic_load(&pool.turn) == 0 || pool.process != getpid() || pool.helpers < threads - 1) hire(threads - 1);
    if (threads > pool.helpers + 1) threads = pool.helpers + 1;
    pool.work = work, pool.task = task, pool.count = count, pool.threads = threads;
    atomic_store(&pool.left, pool.helpers);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.turn, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    do_part(0);
    while (atomic_load_explicit(&pool.left, memory_order_acquire)) {}
    pthread_mutex_unlock(&pool.taken);
    return threads;
}

/* In the floating-point environment that every process begins with, whatever others have made of it: libraries that were
 * built with fast mathematics let small numbers become zero in the whole process. */
static int share(const Task *task, Work *work) {
    fenv_t others;
    fegetenv(&others);
    fesetenv(FE_DFL_ENV);
    int parts = shared(task, work);
    fesetenv(&others);
    return parts;
}

/* ---- What Python calls ---- */

void block_free(Block *b) {
    if (!b) return;
    void *all[] = {b->planes[0], b->planes[1], b->planes[2], b->clipped, b->weights, b->centres, b->inverse, b->across,
                   b->blue, b->blue_scale, b->blue_on_line, b->prefix, b->low, b->middle, b->high, b->features, b->mean,
                   b->variance, b->shift, b->context, b->portions, b->slopes, b->starts, b->term_weights, b->own_weights,
                   b->active, b->sums};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(b);
}

/* Room for blocks of up to `capacity` pixels; none if memory is short. */
Block *block_new(const Mixture *mixture, const Rule *rule, int capacity) {
    Block *b = calloc(1, sizeof *b);
    if (!b) return b;
    size_t n = capacity, wide = n * mixture->components * sizeof(double);
    int complete = 1;
    b->mixture = mixture, b->rule = rule;
#define ROOM(name, size) complete &= (b->name = malloc(size)) != NULL
    for (int plane = 0; plane < PLANES; plane++) ROOM(planes[plane], n);
    ROOM(clipped, n);
    ROOM(weights, wide), ROOM(centres, wide), ROOM(inverse, wide);
    ROOM(across, wide), ROOM(blue, wide), ROOM(blue_scale, wide), ROOM(blue_on_line, wide);
    ROOM(prefix, n * sizeof(int32_t)), ROOM(context, n * sizeof(int32_t));
    ROOM(low, n * sizeof(double)), ROOM(middle, n * sizeof(double)), ROOM(high, n * sizeof(double));
    ROOM(mean, n * sizeof(double)), ROOM(variance, n * sizeof(double)), ROOM(shift, n * sizeof(double));
    b->room = padded(mixture->components * (rule ? rule->experts : 1));
    ROOM(slopes, n * b->room * sizeof(double)), ROOM(starts, n * b->room * sizeof(double));
    ROOM(term_weights, n * b->room * sizeof(double)), ROOM(own_weights, wide), ROOM(active, n * sizeof(int32_t));
    ROOM(sums, MAX_THREADS * sizeof(Sums));
    ROOM(features, n * MAX_FEATURES * sizeof(int16_t)), ROOM(portions, n * MAX_EXPERTS * sizeof(double));
#undef ROOM
    if (complete) return b;
    block_free(b);
    return NULL;
}

void block_start(Block *b, const Space *space, const int32_t *parameters, int count, const int32_t *at,
                 const int32_t *neighbours, int threads) {
    b->threads = threads;
    b->space = space, b->parameters = parameters, b->count = count;
    b->at = at, b->neighbours = neighbours, b->plane = -1;
}

static void begin_plane(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    (void)part;
    for (int i = first; i < last; i++) {
        if (b->plane == 0) first_plane(b, i);
        else if (!b->space) next_colour(b, i);
        else if (b->plane == 1) red_chroma(b, i);
        else blue_chroma(b, i);
        if (task->canvas) moments(b, i);
        if (task->learnt) predict(b, i, task->learnt, task->canvas);
    }
}

/* Go on to the next plane. Without `learnt` nothing is predicted; without a canvas nothing is remembered. */
void block_plane(Block *b, Learnt *learnt, const Canvas *canvas) {
    Task task = {.block = b, .learnt = learnt, .canvas = canvas};
    b->plane++;
    share(&task, begin_plane);
}

/* The masses of a bit's two values, less one each, as the stack wants them: of 2**24 together. */
static void put_masses(double low, double middle, double high, float *out) {
    const double all = (1 << MASS_BITS) - 2;
    double of_zero = floor((1 - (high - middle) / (high - low)) * all);
    out[0] = (float)of_zero;
    out[1] = (float)(all - of_zero);
}

static void known_masses(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    int bits = b->mixture->bits;
    (void)part;
    for (int i = first; i < last; i++) {
        mix(b, i, task->learnt);
        double low = 0, high = whole_mass(b, i, task->learnt);
        int prefix = 0;
        for (int bit = bits - 1; bit >= 0; bit--) {
            int edge = prefix + (1 << bit);
            double middle = mass_below(b, i, task->learnt, edge);
            put_masses(low, middle, high, task->masses + 2 * ((int64_t)(bits - 1 - bit) * b->count + i));
            if (task->values[i] >> bit & 1) prefix = edge, low = middle;
            else high = middle;
        }
    }
}

/* The masses [bits][n][2] of the bits of known values, most significant first. */
void block_masses(Block *b, Learnt *learnt, const uint8_t *values, float *masses) {
    Task task = {.block = b, .learnt = learnt, .values = values, .masses = masses};
    memcpy(b->planes[b->plane], values, b->count);
    share(&task, known_masses);
}

static void take_bit(Block *b, int i, int bit, int32_t found) {
    if (found) b->prefix[i] += 1 << bit, b->low[i] = b->middle[i];
    else b->high[i] = b->middle[i];
}

static void next_masses(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    int bit = task->bit;
    (void)part;
    for (int i = first; i < last; i++) {
        if (bit == b->mixture->bits - 1) {
            mix(b, i, task->learnt);
            b->prefix[i] = 0, b->low[i] = 0, b->high[i] = whole_mass(b, i, task->learnt);
        } else take_bit(b, i, bit + 1, task->found[i]);
        b->middle[i] = mass_below(b, i, task->learnt, b->prefix[i] + (1 << bit));
        put_masses(b->low[i], b->middle[i], b->high[i], task->masses + 2 * i);
    }
}

/* The same of the next bit of values that are being decoded, [n][2]; `found` is what the bit before was, [n]. */
void block_next(Block *b, Learnt *learnt, int bit, const int32_t *found, float *masses) {
    Task task = {.block = b, .learnt = learnt, .bit = bit, .found = found, .masses = masses};
    share(&task, next_masses);
}

/* The last bit. `values` are the plane's. */
void block_last(Block *b, const int32_t *found, uint8_t *values) {
    for (int i = 0; i < b->count; i++) {
        take_bit(b, i, 0, found[i]);
        values[i] = b->planes[b->plane][i] = (uint8_t)b->prefix[i];
    }
}

static void add_up(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    Sums *sums = b->sums + part;
    int n = task->learnt ? features_of(b->rule, b->plane) : 0;
    if (task->learnt) memset(sums, 0, sizeof *sums);
    for (int i = first; i < last; i++) {
        double error = 0;
        if (task->canvas) put(b, i, task->canvas, &error);
        if (task->learnt) {
            const int16_t *f = b->features + (int64_t)i * MAX_FEATURES;
            double factor = floor(1048576 / (b->variance[i] + 77)), wide[MAX_FEATURES];
            for (int j = 0; j < n; j++) wide[j] = f[j];
            for (int j = 0; j < n; j++) {
                double scaled = factor * wide[j], *row = sums->products[j];
                sums->targets[j] += scaled * error;
                for (int k = 0; k <= j; k++) row[k] += scaled * wide[k];
            }
            gains(b, i, task->canvas, sums->gained[b->context[i]]);
            sums->seen[b->context[i]]++;
        }
        if (b->plane + 1 < PLANES) weigh(b, i);
    }
}

/* The plane is known: weigh the components for the next one, remember errors, and learn. */
void block_known(Block *b, Learnt *learnt, const Canvas *canvas) {
    Task task = {.block = b, .learnt = learnt, .canvas = canvas};
    int parts = share(&task, add_up), n;
    if (!learnt) return;
    n = features_of(b->rule, b->plane);
    for (int part = 0; part < parts; part++)
        for (int j = 0; j < n; j++) {
            learnt->targets[j] += b->sums[part].targets[j];
            for (int k = 0; k <= j; k++) learnt->products[j][k] += b->sums[part].products[j][k];
        }
    fenv_t others;
    fegetenv(&others);
    fesetenv(FE_DFL_ENV);
    solve(learnt, n, b->rule->ridge);
    fesetenv(&others);
    for (int context = 0; context < CONTEXTS; context++) {
        int64_t seen = 0, gained[MAX_EXPERTS] = {0};
        for (int part = 0; part < parts; part++) {
            seen += b->sums[part].seen[context];
            for (int e = 0; e < b->rule->experts; e++) gained[e] += b->sums[part].gained[context][e];
        }
        if (seen) score(learnt, b->rule, context, seen, gained);
    }
}

/* For whoever declares the structures again: the sizes that they have here. */
typedef struct {
    int64_t mixture, space, rule, learnt, canvas;
} Sizes;

const char *block_source(void) { return SOURCE; }

void block_sizes(Sizes *to) {
    Sizes sizes = {sizeof(Mixture), sizeof(Space), sizeof(Rule), sizeof(Learnt), sizeof(Canvas)};
    *to = sizes;
}
