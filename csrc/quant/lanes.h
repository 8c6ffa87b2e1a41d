/* Four float32 values at a time, by the vector extension of GNU C. Baseline instructions only; sums
 * are in an order that no compiler changes. */
#ifndef MMRT_LANES_H
#define MMRT_LANES_H

#include <stdint.h>
#include <string.h>

#include "fit.h"

typedef float lanes __attribute__((vector_size(16)));
typedef int32_t lane_bits __attribute__((vector_size(16)));
enum { LANES = 4 };

static inline lanes load(const float *x) {
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline lanes all(float x) {
    return (lanes){x, x, x, x};
}

static inline float total(lanes v) {
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline lanes select(lane_bits which, lanes a, lanes b) {
    return (lanes)(((lane_bits)a & which) | ((lane_bits)b & ~which));
}

/* The whole numbers from lo to hi that are nearest, even ones from halfway: adding and taking away
 * 1.5 * 2^23 leaves a float32 without its fraction. */
static inline lanes rounded(lanes v, int lo, int hi) {
    const lanes least = all((float)lo), most = all((float)hi);
    v = select(v < least, least, v);
    v = select(v > most, most, v);
    return v + 12582912.0f - 12582912.0f;
}

/* The q that meet v best on a line. */
static inline lanes on_line(lanes v, struct mmrt_line line, int lo, int hi) {
    const float inverse = line.scale != 0 ? 1 / line.scale : 0;
    return rounded((v + line.min) * inverse, lo, hi);
}

#endif
