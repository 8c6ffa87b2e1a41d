/* Matrices from one type to another, split among threads. */
#include "mmrt.h"

#include "base/pool.h"
#include "base/share.h"
#include "base/status.h"
#include "quant/quant.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The work is shared out in pieces of this many elements, a multiple of every block. */
enum { PIECE = 4096 };

struct quantization {
    const struct mmrt_format *from, *to;
    const uint8_t *source;
    uint8_t *blocks;
    uint64_t n_elements;
    struct mmrt_run *runs;
    _Atomic uint64_t fault; /* the first element that has no place in a block; else n_elements */
};

static void note_fault(struct quantization *job, uint64_t element) {
    uint64_t first = atomic_load(&job->fault);
    while (element < first && !atomic_compare_exchange_weak(&job->fault, &first, element))
        ;
}

static void quantize_piece(struct quantization *job, uint64_t first, size_t n) {
    float values[PIECE];
    job->from->unpack(job->source + first / job->from->elements * job->from->bytes, values, n);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(values[i]) <= 65504)) {
            note_fault(job, first + i);
            return;
        }
    job->to->pack(values, job->blocks + first / job->to->elements * job->to->bytes, n);
}

static void quantize_job(void *context, int thread, int n_threads) {
    struct quantization *job = context;
    uint64_t piece;
    mmrt_share_begin(job->runs, thread, n_threads, (job->n_elements + PIECE - 1) / PIECE);
    while (mmrt_share_next(job->runs, thread, n_threads, &piece)) {
        const uint64_t first = piece * PIECE, left = job->n_elements - first;
        quantize_piece(job, first, left < PIECE ? left : PIECE);
    }
}

static mmrt_status refuse_fault(const mmrt_weight *w, const struct quantization *job,
                                uint64_t first_row, mmrt_error *err) {
    const uint64_t element = job->fault, block = element / job->from->elements;
    float values[256];
    job->from->unpack(job->source + block * job->from->bytes, values, job->from->elements);
    return mmrt_fail(err, MMRT_FORMAT,
                     "tensor %s: %g in row %llu, column %llu: type %s has no such"
                     " value",
                     w->name, (double)values[element % job->from->elements],
                     (unsigned long long)(first_row + element / w->cols),
                     (unsigned long long)(element % w->cols), job->to->name);
}

mmrt_status mmrt_quantize(mmrt_pool *pool, const mmrt_weight *w, uint64_t first, uint64_t n_rows,
                          uint32_t type, void *blocks, mmrt_error *err) {
    const struct mmrt_format *from = mmrt_format_find(w->type), *to = mmrt_format_find(type);
    if (!from || !from->unpack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: type %s cannot be read", w->name,
                         from ? from->name : "unknown");
    if (!to || !to->pack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: type %s cannot be written", w->name,
                         to ? to->name : "unknown");
    if (w->cols % from->elements || w->cols % to->elements)
        return mmrt_fail(err, MMRT_ARGUMENT, "tensor %s: rows of %llu are not whole blocks of %s",
                         w->name, (unsigned long long)w->cols,
                         w->cols % from->elements ? from->name : to->name);
    if (first > w->rows || n_rows > w->rows - first)
        return mmrt_fail(err, MMRT_ARGUMENT, "tensor %s: rows %llu to %llu are not in its %llu",
                         w->name, (unsigned long long)first, (unsigned long long)(first + n_rows),
                         (unsigned long long)w->rows);
    struct quantization job = {.from = from, .to = to, .blocks = blocks};
    job.source = (const uint8_t *)w->data + first * (w->cols / from->elements * from->bytes);
    job.n_elements = n_rows * w->cols;
    job.fault = job.n_elements;
    const size_t n_threads = (size_t)mmrt_pool_threads(pool);
    job.runs = aligned_alloc(64, n_threads * sizeof *job.runs);
    if (!job.runs)
        return mmrt_fail(err, MMRT_NO_MEMORY, "tensor %s: no memory to quantise", w->name);
    memset(job.runs, 0, n_threads * sizeof *job.runs);
    mmrt_status status = mmrt_pool_run(pool, quantize_job, &job, err);
    free(job.runs);
    if (!status && job.fault < job.n_elements)
        return refuse_fault(w, &job, first, err);
    return status;
}
