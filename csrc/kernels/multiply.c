#include "kernels/multiply.h"

uint64_t mmrt_rows_at_a_time(const mmrt_weight *w, uint64_t all) {
    /* Many: as many panels as a kernel multiplies with one look at the columns. */
    enum { PIECE_BYTES = 16384, MANY = 2048, PANEL = 16, PANELS = 64 };
    const uint64_t unit = all >= MANY ? PANELS : PANEL;
    return (PIECE_BYTES / mmrt_row_bytes(w) + unit) / unit * unit;
}

/* Columns that matvec gives, to the bit, what it gives each of them alone. */
static size_t few_exactly(const struct mmrt_kernels *kernels, const mmrt_weight *w) {
    return mmrt_format_find(w->type)->elements > 1 ? kernels->few[w->type] : 1;
}

void mmrt_multiply(const struct mmrt_kernels *kernels, bool exact, const mmrt_weight *w,
                   const uint8_t *rows, uint64_t n_rows, const uint8_t *next,
                   const struct mmrt_columns *x, size_t first, size_t n, float *y, size_t y_stride,
                   void *scratch) {
    const size_t bytes = mmrt_row_bytes(w);
    const size_t few = exact ? few_exactly(kernels, w) : kernels->few[w->type];
    next = next ? next : rows + n_rows * bytes;
    if (n <= few) {
        kernels->matvec[w->type](rows, bytes, n_rows, next, x, n, y, y_stride);
    } else if (exact) {
        for (size_t c = 0; c < n; c += few) {
            const size_t some = n - c < few ? n - c : few;
            const struct mmrt_columns part = mmrt_columns_up_to(x, first + c + some - 1);
            kernels->matvec[w->type](rows, bytes, n_rows, n - c > few ? rows : next, &part, some,
                                     y + c * y_stride, y_stride);
        }
    } else {
        kernels->matmul[w->type](rows, bytes, n_rows, x, first, n, y, y_stride, scratch);
    }
}
