/* From parameters to distributions, as in likelihoods/logistic.py and likelihoods/chroma.py, and to the masses that values
 * are coded with. */
#ifndef DISTRIBUTIONS_H
#define DISTRIBUTIONS_H

#include <math.h>
#include <string.h>

#include "block.h"

/* Into each function that is compiled twice: see threads.h. */
#define INLINE static inline __attribute__((always_inline))

INLINE double looked_up(const double *table, int64_t length, int64_t index) {
    return table[index < 0 ? 0 : index >= length ? length - 1 : index];
}

INLINE int32_t parameter(const Block *b, int i, int number) { return b->parameters[(int64_t)number * b->count + i]; }

INLINE double mean_of(const Block *b, int i, int plane, int k) {
    const Mixture *m = b->mixture;
    double unit = ((1 << m->bits) - 1) * (double)(1 << (UNIT_BITS - MEAN_BITS));
    return parameter(b, i, m->components * (1 + 3 * plane) + k) * unit;
}

INLINE double inverse_scale_of(const Block *b, int i, int plane, int k) {
    const Mixture *m = b->mixture;
    int32_t log_scale = parameter(b, i, m->components * (2 + 3 * plane) + k);
    return looked_up(m->inverse_scale, m->inverse_scales, log_scale - LOG_SCALE_MIN * (1 << LOG_SCALE_BITS));
}

INLINE double slope_of(const Block *b, int i, int slot, int k) {
    const Mixture *m = b->mixture;
    return looked_up(m->coefficient, COEFFICIENTS, parameter(b, i, m->components * (3 + 3 * slot) + k) + COEFFICIENTS / 2);
}

INLINE double position_of(const Mixture *m, int value) {
    return (2.0 * value - ((1 << m->bits) - 1)) * (1 << UNIT_BITS);
}

INLINE double shifted(double slope, double distance) { return floor(slope * distance * (1.0 / (1 << UNIT_BITS))); }

/* The mean of a component, given the positions of the colours before. */
INLINE double centre_of(const Block *b, int i, int plane, int k, const double *known) {
    double centre = mean_of(b, i, plane, k);
    for (int term = 0; term < plane; term++) {
        double distance = known[term] - (b->mixture->residual ? mean_of(b, i, term, k) : 0);
        centre += shifted(slope_of(b, i, plane + term - 1, k), distance);
    }
    return centre;
}

INLINE void first_plane(Block *b, int i) {
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

INLINE void next_colour(Block *b, int i) {
    const Mixture *m = b->mixture;
    double known[2] = {position_of(m, b->planes[0][i]), 0};
    if (b->plane == 2) known[1] = position_of(m, b->planes[1][i]);
    for (int k = 0; k < m->components; k++) {
        int64_t to = (int64_t)i * m->components + k;
        b->centres[to] = centre_of(b, i, b->plane, k, known);
        b->inverse[to] = inverse_scale_of(b, i, b->plane, k);
    }
}

INLINE void red_chroma(Block *b, int i) {
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

INLINE void blue_chroma(Block *b, int i) {
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
INLINE double place_of(const Block *b, int i, int value) {
    const Space *s = b->space;
    if (!s || b->plane == 0) return value;
    int red = b->planes[0][i];
    double position = b->plane == 1
                          ? s->edges_of_cr[red * EDGES + value]
                          : floor((s->edges_of_cb[b->clipped[i] * EDGES + value] + s->grey[red * VALUES + b->planes[1][i]]) * 0.5);
    return position * (1.0 / (1 << (UNIT_BITS + 1))) + VALUES / 2;
}

/* In units of the table's index an edge e lies at ((2 e - 2**bits) << 14) inverse unit. All products are exact: integers
 * below 2**53 times a power of two. */
INLINE void term_of(const Mixture *m, double centre, double inverse, double *slope, double *start) {
    const double unit = 1.0 / (1 << (UNIT_BITS + INVERSE_SCALE_BITS - ARGUMENT_BITS)) / (1 << m->bits);
    const double first = centre + (double)(1 << m->bits) * (1 << UNIT_BITS);
    *slope = inverse * (1 << (UNIT_BITS + 1)) * unit;
    *start = 0.5 + (ARGUMENT_RANGE << ARGUMENT_BITS) - first * inverse * unit;
}

INLINE double sigmoid_at(const Mixture *m, double slope, double start, double place) {
    const double last = SIGMOIDS - 1;
    double index = slope * place + start;
    index = index > 0 ? index : 0;
    index = index < last ? index : last;
    return m->sigmoid[(int32_t)index];
}

typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));
typedef double Anywhere __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef int64_t Masks __attribute__((vector_size(LANES * sizeof(int64_t))));
typedef int32_t Indices __attribute__((vector_size(LANES * sizeof(int32_t))));

/* Arguments of the distribution function to what it is there, four at a time. */
INLINE void sigmoids(const float *sigmoid, Doubles *at) {
    const Doubles last = {SIGMOIDS - 1, SIGMOIDS - 1, SIGMOIDS - 1, SIGMOIDS - 1}, none = {0};
    Doubles index = (Doubles)((Masks)*at & (*at > none));
    Masks inside = index < last;
    index = (Doubles)(((Masks)index & inside) | ((Masks)last & ~inside));
    Indices i = __builtin_convertvector(index, Indices);
    *at = (Doubles){sigmoid[i[0]], sigmoid[i[1]], sigmoid[i[2]], sigmoid[i[3]]};
}

#define FOUR(from) (*(const Anywhere *)(from))

/* What is below one place, four terms at a time. A sum of integers below 2**53: its order does not matter. */
INLINE double sum_at(const float *sigmoid, const double *slopes, const double *starts, const double *weights,
                          int count, double place) {
    Doubles totals = {0};
    for (int k = 0; k < count; k += LANES) {
        Doubles at = FOUR(slopes + k) * place + FOUR(starts + k);
        sigmoids(sigmoid, &at);
        totals += FOUR(weights + k) * at;
    }
    return (totals[0] + totals[1]) + (totals[2] + totals[3]);
}

/* What is below each of MAX_BITS places, all of them at a time. */
INLINE void sums_at(const float *sigmoid, const double *slopes, const double *starts, const double *weights, int count,
                         const double *places, double *sums) {
    Doubles some = {0}, others = {0};
    for (int k = 0; k < count; k++) {
        Doubles at = slopes[k] * FOUR(places) + starts[k], at_others = slopes[k] * FOUR(places + LANES) + starts[k];
        sigmoids(sigmoid, &at), sigmoids(sigmoid, &at_others);
        some += weights[k] * at, others += weights[k] * at_others;
    }
    memcpy(sums, &some, sizeof some), memcpy(sums + LANES, &others, sizeof others);
}

/* What each term has from `begin` to `end`; all that is below if these are of the least value, all above if of the
 * largest. `masses` has room for whole LANES. */
INLINE void between(const float *sigmoid, const double *slopes, const double *starts, int count, double begin,
                         double end, int least, int largest, double *masses) {
    for (int k = 0; k < count; k += LANES) {
        Doubles low = {0}, high = {1 << SIGMOID_BITS, 1 << SIGMOID_BITS, 1 << SIGMOID_BITS, 1 << SIGMOID_BITS};
        if (!least) low = FOUR(slopes + k) * begin + FOUR(starts + k), sigmoids(sigmoid, &low);
        if (!largest) high = FOUR(slopes + k) * end + FOUR(starts + k), sigmoids(sigmoid, &high);
        high -= low;
        memcpy(masses + k, &high, sizeof high);
    }
}

INLINE int padded(int count) { return (count + LANES - 1) / LANES * LANES; }

/* The terms of the distribution that a plane's value is coded with: the network's or, with `learnt`, the mixture of all
 * experts. */
INLINE void mix(Block *b, int i, const Learnt *learnt) {
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

INLINE double least_mass(const Learnt *learnt) { return learnt ? LEAST_MIXED_MASS : LEAST_MASS; }

INLINE double mass_below(const Block *b, int i, const Learnt *learnt, int value) {
    int64_t at = i * b->room;
    int count = padded(b->active[i] * (learnt ? b->rule->experts : 1));
    double mass = sum_at(b->mixture->sigmoid, b->slopes + at, b->starts + at, b->term_weights + at, count, place_of(b, i, value));
    return mass + value * least_mass(learnt);
}

/* Of MAX_BITS places; without what each value has at least. */
INLINE void masses_below(const Block *b, int i, const Learnt *learnt, const double *places, double *masses) {
    int64_t at = i * b->room;
    int count = b->active[i] * (learnt ? b->rule->experts : 1);
    sums_at(b->mixture->sigmoid, b->slopes + at, b->starts + at, b->term_weights + at, count, places, masses);
}

INLINE double whole_mass(const Block *b, int i, const Learnt *learnt) {
    double all = 0;
    for (int k = 0; k < b->active[i] * (learnt ? b->rule->experts : 1); k++) all += b->term_weights[i * b->room + k];
    return all * (1 << SIGMOID_BITS) + (1 << b->mixture->bits) * least_mass(learnt);
}

typedef struct { /* of one component's distribution function: where its index lies, and what it is at a bin's edges */
    double slope, start, low, high;
} Bin;

/* The bin of `value`, which lies from `begin` to `end`. */
INLINE Bin bin_of(const Block *b, int i, int k, int value, double begin, double end) {
    const Mixture *m = b->mixture;
    int64_t at = (int64_t)i * m->components + k;
    Bin bin;
    term_of(m, b->centres[at], b->inverse[at], &bin.slope, &bin.start);
    bin.low = value ? sigmoid_at(m, bin.slope, bin.start, begin) : 0;
    bin.high = value < (1 << m->bits) - 1 ? sigmoid_at(m, bin.slope, bin.start, end) : 1 << SIGMOID_BITS;
    return bin;
}

/* The components' weights once their masses in the known value's bin are multiplied with them (Bayes' rule), the
 * largest 2**20. One more than the mass: never all zero. */
INLINE void weigh_by(Block *b, int i, const Bin *bins) {
    int components = b->mixture->components;
    double *weights = b->weights + (int64_t)i * components, product[MAX_COMPONENTS], largest = 0;
    for (int k = 0; k < components; k++) {
        product[k] = (bins[k].high - bins[k].low + 1) * weights[k];
        largest = product[k] > largest ? product[k] : largest;
    }
    for (int k = 0; k < components; k++) weights[k] = floor(product[k] / largest * (1 << WEIGHT_BITS));
}

/* The same once the value of the plane is known. */
INLINE void weigh(Block *b, int i) {
    int value = b->planes[b->plane][i];
    double begin = place_of(b, i, value), end = place_of(b, i, value + 1);
    Bin bins[MAX_COMPONENTS];
    for (int k = 0; k < b->mixture->components; k++) bins[k] = bin_of(b, i, k, value, begin, end);
    weigh_by(b, i, bins);
}

#endif
