/* One matrix on its own times float columns, split among threads. */
#include "kernels/multiply.h"

#include "base/pool.h"
#include "base/share.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

struct product {
    const struct mmrt_kernels *kernels;
    const mmrt_weight *weight;
    struct mmrt_columns columns;
    size_t n;
    float *y;
    uint8_t *scratch;
    size_t scratch_bytes; /* of each thread */
    struct mmrt_run *runs;
};

static void product_job(void *context, int thread, int n_threads) {
    const struct product *p = context;
    const mmrt_weight *w = p->weight;
    const uint64_t rows = mmrt_rows_at_a_time(w, w->rows);
    uint64_t piece;
    mmrt_share_begin(p->runs, thread, n_threads, (w->rows + rows - 1) / rows);
    while (mmrt_share_next(p->runs, thread, n_threads, &piece)) {
        const uint64_t first = piece * rows;
        const uint64_t end = first + rows < w->rows ? first + rows : w->rows;
        mmrt_multiply(p->kernels, false, w, (const uint8_t *)w->data + first * mmrt_row_bytes(w),
                      end - first, NULL, &p->columns, 0, p->n, p->y + first, w->rows,
                      p->scratch + (size_t)thread * p->scratch_bytes);
    }
}

mmrt_isa mmrt_matmul_isa(mmrt_isa isa, uint32_t type) {
    return type < MMRT_TYPE_LIMIT ? mmrt_kernels_for(isa)->matrix_isa[type] : MMRT_ISA_REF;
}

mmrt_status mmrt_matmul(mmrt_pool *pool, mmrt_isa isa, const mmrt_weight *w, const float *x,
                        size_t n, float *y, mmrt_error *err) {
    const struct mmrt_format *format = mmrt_format_find(w->type);
    if (!format || !format->unpack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "%s: cannot multiply with type %s", w->name,
                         format ? format->name : "unknown");
    if (w->cols % format->elements)
        return mmrt_fail(err, MMRT_ARGUMENT, "%s: rows of %llu are not whole blocks of %s", w->name,
                         (unsigned long long)w->cols, format->name);
    if (!n || !w->rows || !w->cols) {
        memset(y, 0, n * w->rows * sizeof *y);
        return MMRT_OK;
    }
    const size_t n_threads = (size_t)mmrt_pool_threads(pool);
    const size_t few = n < MMRT_FEW ? n : MMRT_FEW;
    const size_t columns_bytes = mmrt_columns_bytes(n, w->cols, few);
    const struct mmrt_kernels *kernels = mmrt_kernels_for(isa);
    const size_t scratch_bytes = n > kernels->few[w->type] ? MMRT_MATMUL_SCRATCH : 0;
    const size_t bytes =
        n_threads * sizeof(struct mmrt_run) + columns_bytes + n_threads * scratch_bytes;
    uint8_t *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        return mmrt_fail(err, MMRT_NO_MEMORY, "%s: no memory to multiply by %zu columns", w->name,
                         n);
    memset(memory, 0, n_threads * sizeof(struct mmrt_run) + columns_bytes);
    struct product p = {.kernels = kernels, .weight = w, .n = n, .y = y};
    p.runs = (struct mmrt_run *)(void *)memory;
    uint8_t *columns = memory + n_threads * sizeof(struct mmrt_run);
    mmrt_columns_place(&p.columns, n, w->cols, few, columns);
    p.scratch = columns + columns_bytes;
    p.scratch_bytes = scratch_bytes;
    memcpy(p.columns.x, x, n * w->cols * sizeof *x);
    if (format->elements > 1)
        for (size_t c = 0; c < n; c++)
            p.kernels->quantize(&p.columns, c, 0, w->cols);
    mmrt_status status = mmrt_pool_run(pool, product_job, &p, err);
    free(memory);
    return status ? status : mmrt_bytes_check(w->data, w->rows * mmrt_row_bytes(w), err);
}
