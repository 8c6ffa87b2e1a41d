/* Rows of a matrix times columns of activations, by the kernel that suits their number. */
#ifndef MMRT_KERNELS_MULTIPLY_H
#define MMRT_KERNELS_MULTIPLY_H

#include "kernels/kernels.h"

/* Bytes between the rows of a matrix. */
static inline size_t mmrt_row_bytes(const mmrt_weight *w) {
    const struct mmrt_format *format = mmrt_format_find(w->type);
    return w->cols / format->elements * format->bytes;
}

static inline uint64_t mmrt_weight_bytes(const mmrt_weight *w) {
    return (w->stack > 1 ? w->stack : 1) * w->rows * mmrt_row_bytes(w);
}

/* How many rows of `w` to multiply at a time: enough to amortise what taking them costs a thread.
 * `all` is the number of rows that are shared out together. */
uint64_t mmrt_rows_at_a_time(const mmrt_weight *w, uint64_t all);

/* y[c * y_stride + r] = row r of `rows` times column first + c, for n_rows rows of `w` and n
 * columns, the last of x. `next` is what is read after these rows; NULL: what follows them in
 * memory. exact: each column gets, to the bit, what it would get alone. scratch: as for
 * mmrt_matmul_fn. */
void mmrt_multiply(const struct mmrt_kernels *kernels, bool exact, const mmrt_weight *w,
                   const uint8_t *rows, uint64_t n_rows, const uint8_t *next,
                   const struct mmrt_columns *x, size_t first, size_t n, float *y, size_t y_stride,
                   void *scratch);

#endif
