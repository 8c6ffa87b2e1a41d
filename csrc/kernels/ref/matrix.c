/* One matrix-vector product for all types: unpack to float32, multiply, sum. */
#include "kernels/ref/ref.h"

/* Rows are unpacked in pieces of this many elements, a multiple of every block. */
enum { PIECE = 256 };

static double row_times_column(const struct mmrt_format *format, const uint8_t *row,
                               const struct mmrt_columns *columns, size_t column) {
    size_t k = columns->k;
    const float *x = columns->x + column * k;
    const size_t first_quantum = column * columns->stride;
    double sum = 0;
    float w[PIECE];
    for (size_t first = 0; first < k; first += PIECE) {
        size_t n = k - first < PIECE ? k - first : PIECE;
        format->unpack(row + first / format->elements * format->bytes, w, n);
        for (size_t i = 0; i < n; i++) {
            size_t at = first + i;
            if (format->elements > 1)
                sum += (double)w[i] * ((double)columns->d[(first_quantum + at) / MMRT_GROUP] *
                                       columns->q[first_quantum + at]);
            else
                sum += (double)w[i] * x[at];
        }
    }
    return sum;
}

static void matvec(uint32_t type, const uint8_t *w, size_t row_bytes, size_t n_rows,
                   const struct mmrt_columns *columns, size_t column, float *y) {
    const struct mmrt_format *format = mmrt_format_find(type);
    for (size_t r = 0; r < n_rows; r++)
        y[r] = (float)row_times_column(format, w + r * row_bytes, columns, column);
}

#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    void mmrt_matvec_##name##_ref(const void *w, size_t row_bytes, size_t n_rows,                  \
                                  const void *next, const struct mmrt_columns *columns, size_t n,  \
                                  float *y, size_t y_stride) {                                     \
        (void)next;                                                                                \
        mmrt_matmul_##name##_ref(w, row_bytes, n_rows, columns, columns->last + 1 - n, n, y,       \
                                 y_stride, NULL);                                                  \
    }                                                                                              \
    void mmrt_matmul_##name##_ref(const void *w, size_t row_bytes, size_t n_rows,                  \
                                  const struct mmrt_columns *columns, size_t first,                \
                                  size_t n_columns, float *y, size_t y_stride, void *scratch) {    \
        (void)scratch;                                                                             \
        for (size_t c = 0; c < n_columns; c++)                                                     \
            matvec(id, w, row_bytes, n_rows, columns, first + c, y + c * y_stride);                \
    }
#define MMRT_FORMAT_SIZE_ONLY(id, name, elements, bytes)
#include "quant/formats.def"
