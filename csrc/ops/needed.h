/* Rows of a matrix of which few tokens need some. */
#ifndef MMRT_OPS_NEEDED_H
#define MMRT_OPS_NEEDED_H

#include "step/step.h"

/* Rows that a thread has multiplied, or is about to. A token needs those whose mark is above zero,
 * or NaN. */
struct mmrt_at_hand {
    uint64_t first, n;  /* of the matrices' rows */
    const float *marks; /* [tokens][stride] */
    uint64_t stride;
    size_t tokens;
};

/* y[t * y_stride + r] = as by mmrt_op_multiply, of the rows that any token needs; zero for others.
 * rows: the first at hand, of the operation's matrix number `i`. */
void mmrt_multiply_needed(const struct worker *w, int i, const struct mmrt_at_hand *hand,
                          const uint8_t *rows, const uint8_t *next, float *y, uint64_t y_stride,
                          void *scratch);

#endif
