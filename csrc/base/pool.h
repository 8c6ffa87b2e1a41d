/* A pool of persistent threads with a barrier that spins before it sleeps. */
#ifndef MMRT_BASE_POOL_H
#define MMRT_BASE_POOL_H

#include "mmrt.h"

typedef void (*mmrt_job)(void *context, int thread, int n_threads);

/* Runs job(context, thread, n_threads) on every thread, the caller as thread 0, and returns when
 * all are done; callers queue. After a fork the child's first call starts threads of its own, and
 * fails if it cannot. Where thread 0 itself forks amid a job, in the child it is to leave the job
 * without another barrier. */
mmrt_status mmrt_pool_run(mmrt_pool *pool, mmrt_job job, void *context, mmrt_error *err);

/* Called by every thread of the running job: returns when all have arrived. */
void mmrt_pool_barrier(mmrt_pool *pool);

/* The same for one of the threads, which calls poll(context) about every `seconds` as it waits, and
 * waits no more when that returns false. */
void mmrt_pool_barrier_polling(mmrt_pool *pool, double seconds, bool (*poll)(void *),
                               void *context);

#endif
