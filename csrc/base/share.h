/* Splitting n pieces of work among threads: each takes a contiguous run of pieces in order, and a
 * thread that is done early takes pieces from the others' runs. */
#ifndef MMRT_BASE_SHARE_H
#define MMRT_BASE_SHARE_H

#include "mmrt.h"

#include <stdatomic.h>

/* One thread's run: the end in the upper half, the next piece in the lower, in one number so that
 * a piece is taken by one addition. */
struct mmrt_run {
    _Alignas(64) _Atomic uint64_t end_and_next;
};

/* The first of a thread's n pieces; its run ends where the next thread's begins. */
static inline uint64_t mmrt_share_first(uint64_t n, int thread, int n_threads) {
    return n * (uint64_t)thread / (uint64_t)n_threads;
}

/* Called by each thread for itself. Two tasks that follow one another need different runs: one that
 * is still looking for the last pieces of a task must not find the first of the next. */
static inline void mmrt_share_begin(struct mmrt_run *runs, int thread, int n_threads, uint64_t n) {
    uint64_t first = mmrt_share_first(n, thread, n_threads);
    uint64_t end = mmrt_share_first(n, thread + 1, n_threads);
    atomic_store_explicit(&runs[thread].end_and_next, end << 32 | first, memory_order_release);
}

static inline bool mmrt_run_take(struct mmrt_run *run, uint64_t *piece) {
    uint64_t value = atomic_load_explicit(&run->end_and_next, memory_order_relaxed);
    if ((uint32_t)value >= value >> 32)
        return false;
    value = atomic_fetch_add_explicit(&run->end_and_next, 1, memory_order_acq_rel);
    *piece = (uint32_t)value;
    return (uint32_t)value < value >> 32;
}

/* The next piece for this thread: its own, or else another's. Nothing is taken from a thread that
 * has not begun. False when none is left. */
static inline bool mmrt_share_next(struct mmrt_run *runs, int thread, int n_threads,
                                   uint64_t *piece) {
    for (int i = 0; i < n_threads; i++)
        if (mmrt_run_take(&runs[(thread + i) % n_threads], piece))
            return true;
    return false;
}

#endif
