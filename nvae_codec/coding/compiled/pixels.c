/* Blocks of pixels: what `library.py` calls.
 *
 * What is computed here is computed in Python, too, number by number; bitstreams/FORMAT.md has the formulas. Every number
 * is an integer, or a double made by single IEEE 754 operations (+ - * / sqrt floor) in the order written. So products
 * and sums must not be contracted, nor sums reordered: see `compiler.py`.
 */
#include <stdlib.h>

#include "learning.h"
#include "scores.h"
#include "threads.h"

#ifndef SOURCE
#define SOURCE "" /* what this file was when it was compiled */
#endif

struct Task {
    Block *block;
    Learnt *learnt;
    const Canvas *canvas;
    const uint8_t *values;
    const int32_t *found;
    float *masses;
    int bit;
    const Mixture *mixture;
    const float *given, *beside; /* parameters [n][10 M], and what there is of each pixel beside */
    float *out;
};

/* Registers of AVX, which the processor must have. Where they are not known they are not used. */
void use_wide(int use) {
#ifdef __x86_64__
    wide = use;
#else
    (void)use;
#endif
}

static int share_among(int threads, int count, const Task *task, Work *work) {
    fenv_t others = plain_arithmetic();
    int parts = in_parts(task, count, threads, work);
    fesetenv(&others);
    return parts;
}

static int share(const Task *task, Work *work) { return share_among(task->block->threads, task->block->count, task, work); }

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

INLINE void begin_plane(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    int16_t coefficients[MAX_FEATURES];
    for (int j = 0; task->learnt && j < MAX_FEATURES; j++) coefficients[j] = (int16_t)task->learnt->coefficients[j];
    (void)part;
    for (int i = first; i < last; i++) {
        if (b->plane == 0) first_plane(b, i);
        else if (!b->space) next_colour(b, i);
        else if (b->plane == 1) red_chroma(b, i);
        else blue_chroma(b, i);
        if (task->canvas) moments(b, i);
        if (task->learnt) predict(b, i, task->learnt, coefficients, task->canvas);
    }
}
COMPILED_TWICE(begin_plane)

/* Go on to the next plane. Without `learnt` nothing is predicted; without a canvas nothing is remembered. */
void block_plane(Block *b, Learnt *learnt, const Canvas *canvas) {
    Task task = {.block = b, .learnt = learnt, .canvas = canvas};
    b->plane++;
    share(&task, CHOSEN(begin_plane));
}

/* The masses of a bit's two values, less one each, as the stack wants them: of 2**24 together. */
static void put_masses(double low, double middle, double high, float *out) {
    const double all = (1 << MASS_BITS) - 2;
    double of_zero = floor((1 - (high - middle) / (high - low)) * all);
    out[0] = (float)of_zero;
    out[1] = (float)(all - of_zero);
}

INLINE void known_masses(const Task *task, int part, int first, int last) {
    Block *b = task->block;
    int bits = b->mixture->bits;
    (void)part;
    for (int i = first; i < last; i++) {
        double places[MAX_BITS] = {0}, middles[MAX_BITS], low = 0, least = least_mass(task->learnt);
        int value = task->values[i], edges[MAX_BITS];
        mix(b, i, task->learnt);
        for (int j = 0; j < bits; j++) {
            int bit = bits - 1 - j;
            edges[j] = (value >> bit | 1) << bit;
            places[j] = place_of(b, i, edges[j]);
        }
        masses_below(b, i, task->learnt, places, middles);
        double high = whole_mass(b, i, task->learnt);
        for (int j = 0; j < bits; j++) {
            double middle = middles[j] + edges[j] * least;
            put_masses(low, middle, high, task->masses + 2 * ((int64_t)j * b->count + i));
            if (value >= edges[j]) low = middle;
            else high = middle;
        }
    }
}
COMPILED_TWICE(known_masses)

/* The masses [bits][n][2] of the bits of known values, most significant first. */
void block_masses(Block *b, Learnt *learnt, const uint8_t *values, float *masses) {
    Task task = {.block = b, .learnt = learnt, .values = values, .masses = masses};
    memcpy(b->planes[b->plane], values, b->count);
    share(&task, CHOSEN(known_masses));
}

static void take_bit(Block *b, int i, int bit, int32_t found) {
    if (found) b->prefix[i] += 1 << bit, b->low[i] = b->middle[i];
    else b->high[i] = b->middle[i];
}

INLINE void next_masses(const Task *task, int part, int first, int last) {
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
COMPILED_TWICE(next_masses)

/* The same of the next bit of values that are being decoded, [n][2]; `found` is what the bit before was, [n]. */
void block_next(Block *b, Learnt *learnt, int bit, const int32_t *found, float *masses) {
    Task task = {.block = b, .learnt = learnt, .bit = bit, .found = found, .masses = masses};
    share(&task, CHOSEN(next_masses));
}

/* The last bit. `values` are the plane's. */
void block_last(Block *b, const int32_t *found, uint8_t *values) {
    for (int i = 0; i < b->count; i++) {
        take_bit(b, i, 0, found[i]);
        values[i] = b->planes[b->plane][i] = (uint8_t)b->prefix[i];
    }
}

INLINE void add_up(const Task *task, int part, int first, int last) {
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
COMPILED_TWICE(add_up)

/* The plane is known: weigh the components for the next one, remember errors, and learn. */
void block_known(Block *b, Learnt *learnt, const Canvas *canvas) {
    Task task = {.block = b, .learnt = learnt, .canvas = canvas};
    int parts = share(&task, CHOSEN(add_up)), n;
    if (!learnt) return;
    n = features_of(b->rule, b->plane);
    for (int part = 0; part < parts; part++)
        for (int j = 0; j < n; j++) {
            learnt->targets[j] += b->sums[part].targets[j];
            for (int k = 0; k <= j; k++) learnt->products[j][k] += b->sums[part].products[j][k];
        }
    fenv_t others = plain_arithmetic();
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

INLINE void some_scores(const Task *task, int part, int first, int last) {
    const Mixture *m = task->mixture;
    int largest = (1 << m->bits) - 1;
    Few few;
    (void)part;
    for (; first < last; first += FEW) {
        int count = last - first < FEW ? last - first : FEW;
        Block b = few_pixels(&few, m, task->given + (int64_t)first * 10 * m->components, count);
        for (int i = 0; i < count; i++) {
            for (int plane = 0; plane < PLANES; plane++)
                b.planes[plane][i] = (uint8_t)((task->beside[(int64_t)(first + i) * PLANES + plane] + largest) / 2);
            scores_of(&b, i, task->out + (int64_t)(first + i) * SCORES);
        }
    }
}
COMPILED_TWICE(some_scores)

/* Scores [n][9] of pixels whose samples [n][3] are known, as networks see them: 2 v - (2**b - 1). */
void pixel_scores(const Mixture *mixture, const float *parameters, const float *samples, int count, int threads, float *out) {
    Task task = {.mixture = mixture, .given = parameters, .beside = samples, .out = out};
    share_among(threads, count, &task, CHOSEN(some_scores));
}

INLINE void some_corrected(const Task *task, int part, int first, int last) {
    int numbers = 10 * task->mixture->components, corrections = task->mixture->components + 3 * PLANES;
    Few few;
    (void)part;
    for (; first < last; first += FEW) {
        int count = last - first < FEW ? last - first : FEW;
        Block b = few_pixels(&few, task->mixture, task->given + (int64_t)first * numbers, count);
        for (int i = 0; i < count; i++)
            correct(&b, i, task->beside + (int64_t)(first + i) * corrections, task->out + (int64_t)(first + i) * numbers);
    }
}
COMPILED_TWICE(some_corrected)

/* Parameters [n][10 M] with corrections [n][M + 9]. */
void pixels_corrected(const Mixture *mixture, const float *parameters, const float *corrections, int count, int threads,
                      float *out) {
    Task task = {.mixture = mixture, .given = parameters, .beside = corrections, .out = out};
    share_among(threads, count, &task, CHOSEN(some_corrected));
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
