#include "ops/needed.h"

#include "ops/multiply.h"

#include <string.h>

/* The first row from `row` on, counted from the first at hand, that some token needs; if `not`,
 * that none needs. n: there is none. */
static uint64_t find_row(const struct mmrt_at_hand *h, uint64_t row, bool not) {
    for (; row < h->n; row++) {
        bool needed = false;
        for (size_t t = 0; t < h->tokens; t++)
            needed |= !(h->marks[t * h->stride + row] <= 0); /* NaN too */
        if (needed != not)
            break;
    }
    return row;
}

/* A row's product does not depend on which others are multiplied with it. */
void mmrt_multiply_needed(const struct worker *w, int i, const struct mmrt_at_hand *h,
                          const uint8_t *rows, const uint8_t *next, float *y, uint64_t y_stride,
                          void *scratch) {
    const size_t bytes = mmrt_row_bytes(weight_at(w->step, w->op->weights[i]));
    for (size_t t = 0; t < h->tokens; t++)
        memset(y + t * y_stride, 0, h->n * sizeof *y);
    uint64_t row = find_row(h, 0, false);
    while (row < h->n) {
        const uint64_t end = find_row(h, row, true), after = find_row(h, end, false);
        mmrt_op_multiply(w, i, rows + row * bytes, h->first + row, end - row,
                         after < h->n ? rows + after * bytes : next, y + row, y_stride, scratch);
        row = after;
    }
}
