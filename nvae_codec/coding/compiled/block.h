/* What a block of pixels is made of, and the constants of its arithmetic.
 *
 * A block is n pixels whose planes are coded one after the other, all pixels of a plane together. M are components, E
 * experts, F features. The first five structures are declared in `library.py`, too.
 */
#ifndef BLOCK_H
#define BLOCK_H

#include <stdint.h>

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
    MAX_BITS = 2 * LANES,
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
    MAX_FEATURES = 64,
    MAX_EXPERTS = 12,
    SIZES = 12,
    RATIOS = 6,
    CONTEXTS = SIZES * RATIOS,
    LOG_PARTS = 2048,
    MAX_THREADS = 16,
    MAX_TERMS = MAX_COMPONENTS * MAX_EXPERTS,
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
    const double *logarithms; /* natural ones of 1 + (i + 1/2) / 2048, in 2**-26 */
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

#endif
