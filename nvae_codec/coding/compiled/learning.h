/* What is learnt, as in coding/learning.py. */
#ifndef LEARNING_H
#define LEARNING_H

#include <math.h>
#include <string.h>

#include "distributions.h"

/* The mean, in sixteenths of a level, and the variance, in their squares. */
INLINE void moments(Block *b, int i) {
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

INLINE int features_of(const Rule *r, int plane) {
    return r->neighbours + r->valued + (plane ? r->crossed : 0) + plane + 1;
}

INLINE double clamped(double x, double limit) { return x > limit ? limit : x < -limit ? -limit : x; }

INLINE void predict(Block *b, int i, const Learnt *learnt, const int16_t *coefficients, const Canvas *canvas) {
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
    int32_t sum = 0; /* of at most 64 products of 2**14 and 2**10 */
    for (int j = 0; j < n; j++) sum += coefficients[j] * f[j];
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

INLINE double logarithm(const Rule *r, double x) { /* natural, in 2**-26; x is positive */
    int exponent;
    double part = frexp(x, &exponent) * 2 - 1;
    return (exponent - 1) * 46516319.0 + r->logarithms[(int)(part * LOG_PARTS)];
}

/* What each expert would have gained over all together, in 2**-10. */
INLINE void gains(const Block *b, int i, const Canvas *canvas, int64_t *gained) {
    const Rule *r = b->rule;
    int value = b->planes[b->plane][i], last = (1 << b->mixture->bits) - 1;
    double begin = place_of(b, i, value), end = place_of(b, i, value + 1), masses[MAX_EXPERTS], all = 0, mixed = 0;
    double terms[MAX_TERMS], *term = terms, *slopes = b->slopes + i * b->room, *starts = b->starts + i * b->room;
    const double *own = b->own_weights + (int64_t)i * b->mixture->components;
    int active = b->active[i], count = active * r->experts;
    between(b->mixture->sigmoid, slopes, starts, count, begin, end, value == 0, value == last, terms);
    for (int e = 0; e < r->experts; e++) {
        double mass = LEAST_OWN_MASS, portion = b->portions[(int64_t)i * MAX_EXPERTS + e];
        for (int k = 0; k < active; k++) mass += own[k] * *term++;
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

INLINE void put(Block *b, int i, const Canvas *canvas, double *error) {
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

#endif
