/* The roof, on all threads. */
#include "base/pool.h"
#include "base/status.h"
#include "kernels/kernels.h"

#include <stdatomic.h>

struct roof {
    mmrt_roof_fn *run;
    mmrt_roof_kind kind;
    const uint8_t *data;
    uint64_t n;
    _Atomic uint64_t done;
};

static void roof_job(void *context, int thread, int n_threads) {
    struct roof *r = context;
    uint64_t each = r->n / (uint64_t)n_threads;
    const uint8_t *data = r->data ? r->data + each * (uint64_t)thread : NULL;
    atomic_fetch_add(&r->done, r->run(r->kind, data, each));
}

mmrt_status mmrt_roof(mmrt_pool *pool, mmrt_isa isa, mmrt_roof_kind kind, const void *data,
                      uint64_t n, uint64_t *done, mmrt_error *err) {
    struct roof r = {.run = mmrt_kernels_for(isa)->roof, .kind = kind, .data = data, .n = n};
    mmrt_status status = mmrt_pool_run(pool, roof_job, &r, err);
    *done = r.done;
    return status;
}
