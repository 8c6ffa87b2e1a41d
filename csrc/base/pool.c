#define _GNU_SOURCE
#include "base/pool.h"

#include "base/owner.h"
#include "base/status.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A waiter spins this long before it sleeps: longer than the work between two barriers of a decode
 * step, shorter than a user would notice on the power meter. */
enum { SPIN_NANOSECONDS = 100000 };

/* A number that threads wait to see change. */
struct event {
    atomic_uint value;
    atomic_int sleepers;
};

struct mmrt_pool {
    int n_threads;
    atomic_int owner; /* the process whose threads these are */
    bool spin; /* false when there are more threads than CPUs: spinning would keep the CPU from
                  the thread that is waited for */
    bool stop;
    mmrt_job job;
    void *context;
    struct event start; /* the number of jobs given out */
    struct event all_arrived;
    _Alignas(64) atomic_int arrived;
    pthread_mutex_t busy; /* held during a job, so that callers queue */
    mmrt_set *cpus;       /* of each thread, or NULL: any */
    pthread_t threads[MMRT_MAX_THREADS];
};

struct worker {
    mmrt_pool *pool;
    int thread;
    unsigned seen;
};

static void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Called now and then by a thread that waits. */
struct poll {
    struct timespec interval;
    bool (*function)(void *); /* false: it waits no more */
    void *context;
};

static void event_wait(struct event *event, unsigned old, bool spin, const struct poll *poll) {
    if (spin) {
        uint64_t deadline = now() + SPIN_NANOSECONDS;
        do {
            for (int i = 0; i < 64; i++) {
                if (atomic_load_explicit(&event->value, memory_order_acquire) != old)
                    return;
                cpu_relax();
            }
        } while (now() < deadline);
    }
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->value) == old) {
        const long failed = syscall(SYS_futex, &event->value, FUTEX_WAIT_PRIVATE, old,
                                    poll ? &poll->interval : NULL, NULL, 0);
        if (poll && failed && errno == ETIMEDOUT && !poll->function(poll->context))
            break;
    }
    atomic_fetch_sub(&event->sleepers, 1);
}

static void event_signal(struct event *event) {
    atomic_fetch_add(&event->value, 1);
    if (atomic_load(&event->sleepers) > 0)
        syscall(SYS_futex, &event->value, FUTEX_WAKE_PRIVATE, MMRT_MAX_THREADS, NULL, NULL, 0);
}

static void barrier(mmrt_pool *pool, const struct poll *poll) {
    if (pool->n_threads == 1)
        return;
    unsigned generation = atomic_load_explicit(&pool->all_arrived.value, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == pool->n_threads) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        event_signal(&pool->all_arrived);
    } else {
        event_wait(&pool->all_arrived, generation, pool->spin, poll);
    }
}

void mmrt_pool_barrier(mmrt_pool *pool) {
    barrier(pool, NULL);
}

void mmrt_pool_barrier_polling(mmrt_pool *pool, double seconds, bool (*function)(void *),
                               void *context) {
    const struct poll poll = {
        .interval = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)},
        .function = function,
        .context = context,
    };
    barrier(pool, &poll);
}

static void *worker_main(void *argument) {
    struct worker worker = *(struct worker *)argument;
    free(argument);
    mmrt_pool *pool = worker.pool;
    for (;;) {
        event_wait(&pool->start, worker.seen++, pool->spin, NULL);
        if (pool->stop)
            return NULL;
        pool->job(pool->context, worker.thread, pool->n_threads);
        mmrt_pool_barrier(pool);
    }
}

static void stop_threads(mmrt_pool *pool, int n_started) {
    pool->stop = true;
    event_signal(&pool->start);
    for (int thread = 1; thread < n_started; thread++)
        pthread_join(pool->threads[thread], NULL);
    pool->stop = false;
}

static mmrt_status start_threads(mmrt_pool *pool, mmrt_error *err) {
    memset(&pool->start, 0, sizeof pool->start);
    memset(&pool->all_arrived, 0, sizeof pool->all_arrived);
    atomic_store(&pool->arrived, 0);
    pool->spin = pool->n_threads <= mmrt_cpu_count();
    for (int thread = 1; thread < pool->n_threads; thread++) {
        struct worker *worker = malloc(sizeof *worker);
        int failed = ENOMEM;
        if (worker) {
            *worker = (struct worker){.pool = pool, .thread = thread, .seen = 0};
            failed = pthread_create(&pool->threads[thread], NULL, worker_main, worker);
        }
        if (failed) {
            free(worker);
            stop_threads(pool, thread);
            return mmrt_fail(err, MMRT_NO_MEMORY, "cannot start thread %d of %d: %s", thread + 1,
                             pool->n_threads, strerror(failed));
        }
    }
    return MMRT_OK;
}

mmrt_status mmrt_pool_create(int n_threads, mmrt_pool **out, mmrt_error *err) {
    if (n_threads < 1 || n_threads > MMRT_MAX_THREADS)
        return mmrt_fail(err, MMRT_ARGUMENT, "threads: %d is not from 1 to %d", n_threads,
                         MMRT_MAX_THREADS);
    mmrt_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (!pool)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a thread pool");
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pthread_mutex_init(&pool->busy, NULL);
    mmrt_status status = start_threads(pool, err);
    if (status) {
        free(pool);
        return status;
    }
    mmrt_owner_set(&pool->owner, false);
    *out = pool;
    return MMRT_OK;
}

void mmrt_pool_free(mmrt_pool *pool) {
    if (!pool)
        return;
    if (mmrt_is_owner(&pool->owner)) /* after a fork the threads are the parent's */
        stop_threads(pool, pool->n_threads);
    pthread_mutex_destroy(&pool->busy);
    free(pool->cpus);
    free(pool);
}

int mmrt_pool_threads(const mmrt_pool *pool) {
    return pool->n_threads;
}

static bool run_on(const mmrt_set *cpus) {
    return sched_setaffinity(0, sizeof *cpus, (const cpu_set_t *)cpus) == 0;
}

static void run(mmrt_pool *pool, mmrt_job job, void *context) {
    const int process = getpid();
    pthread_mutex_lock(&pool->busy);
    const mmrt_set callers = pool->cpus ? mmrt_cpu_affinity() : (mmrt_set){{0}};
    const bool lent = mmrt_set_count(&callers) && run_on(&pool->cpus[0]);
    pool->job = job;
    pool->context = context;
    if (pool->n_threads > 1)
        event_signal(&pool->start);
    job(context, 0, pool->n_threads);
    if (pool->n_threads > 1 && getpid() == process) /* else the others are in the parent */
        mmrt_pool_barrier(pool);
    if (lent)
        run_on(&callers);
    pthread_mutex_unlock(&pool->busy);
}

static void bind_job(void *context, int thread, int n_threads) {
    const mmrt_pool *pool = context;
    (void)n_threads;
    run_on(&pool->cpus[thread]);
}

/* Makes the pool this process' own: a fork copied it without its threads, and perhaps while a job
 * of the parent held it. */
static mmrt_status own(mmrt_pool *pool, mmrt_error *err) {
    if (!mmrt_owner_changes(&pool->owner))
        return MMRT_OK;
    pthread_mutex_init(&pool->busy, NULL);
    pool->stop = false;
    mmrt_status status = start_threads(pool, err);
    if (!status && pool->cpus)
        run(pool, bind_job, pool);
    mmrt_owner_set(&pool->owner, status != MMRT_OK);
    return status;
}

mmrt_status mmrt_pool_run(mmrt_pool *pool, mmrt_job job, void *context, mmrt_error *err) {
    mmrt_status status = own(pool, err);
    if (!status)
        run(pool, job, context);
    return status;
}

mmrt_status mmrt_pool_bind(mmrt_pool *pool, const mmrt_set *cpus, mmrt_error *err) {
    const mmrt_set callers = mmrt_cpu_affinity();
    for (int thread = 0; thread < pool->n_threads; thread++) {
        const bool possible = run_on(&cpus[thread]); /* only the kernel knows all that forbids it */
        run_on(&callers);
        if (!possible)
            return mmrt_fail(err, MMRT_ARGUMENT, "thread %d: this process may use none of its CPUs",
                             thread);
    }
    const size_t bytes = (size_t)pool->n_threads * sizeof *cpus;
    mmrt_set *copy = malloc(bytes);
    mmrt_status status = copy ? own(pool, err)
                              : mmrt_fail(err, MMRT_NO_MEMORY,
                                          "no memory for the CPUs of %d threads", pool->n_threads);
    if (status) {
        free(copy);
        return status;
    }
    memcpy(copy, cpus, bytes);
    pthread_mutex_lock(&pool->busy);
    mmrt_set *before = pool->cpus;
    pool->cpus = copy;
    free(before);
    pthread_mutex_unlock(&pool->busy);
    run(pool, bind_job, pool);
    return MMRT_OK;
}
