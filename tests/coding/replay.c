/* Reads tables, a rule and blocks from its input, and writes the masses of their bits, and what was learnt in the end.
 * For machines that run no Python here: tests/coding/test_compiled.py says what it must write. */
#include "pixels.c"

#include <stdio.h>

static void *taken(size_t size) {
    void *room = malloc(size);
    if (!room || fread(room, 1, size, stdin) != size) exit(1);
    return room;
}

int main(void) {
    int32_t *shape = taken(9 * sizeof(int32_t)); /* components, bits, residual, weights, scales; pixels, canvas, turns, neighbours */
    Mixture mixture = {shape[0], shape[1], shape[2], shape[3], shape[4], 0, 0, 0, 0};
    mixture.weight = taken(shape[3] * sizeof(double));
    mixture.inverse_scale = taken(shape[4] * sizeof(double));
    mixture.coefficient = taken(COEFFICIENTS * sizeof(double));
    mixture.sigmoid = taken(SIGMOIDS * sizeof(float));
    Rule *rule = taken(sizeof(Rule));
    rule->logarithms = taken(LOG_PARTS * sizeof(double));
    int count = shape[5], canvas_pixels = shape[6], turns = shape[7];
    const int32_t *neighbours = taken(shape[8] * sizeof(int32_t));
    Canvas canvas;
    Learnt *learnt = calloc(PLANES, sizeof(Learnt));
    for (int plane = 0; plane < PLANES; plane++) {
        canvas.errors[plane] = calloc(canvas_pixels, sizeof(int16_t));
        canvas.values[plane] = calloc(canvas_pixels, sizeof(int16_t));
        canvas.ratios[plane] = calloc(canvas_pixels, 1);
        canvas.gains[plane] = calloc(canvas_pixels, rule->experts);
        for (int i = 0; i < canvas_pixels; i++) canvas.values[plane][i] = UNKNOWN;
    }
    Block *block = block_new(&mixture, rule, count);
    float *masses = malloc((size_t)mixture.bits * count * 2 * sizeof(float));
    for (int turn = 0; turn < turns; turn++) {
        const int32_t *parameters = taken((size_t)10 * mixture.components * count * sizeof(int32_t));
        const int32_t *at = taken(count * sizeof(int32_t));
        block_start(block, NULL, parameters, count, at, neighbours, 2);
        for (int plane = 0; plane < PLANES; plane++) {
            Learnt *of_plane = turn ? learnt + plane : NULL;
            block_plane(block, of_plane, &canvas);
            block_masses(block, of_plane, taken(count), masses);
            block_known(block, of_plane, &canvas);
            fwrite(masses, sizeof(float), (size_t)mixture.bits * count * 2, stdout);
        }
    }
    fwrite(learnt, sizeof(Learnt), PLANES, stdout);
    return fflush(stdout) != 0;
}
