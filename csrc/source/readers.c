/* The threads that read for a source: which ways there are, starting and stopping them. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/status.h"

#include <signal.h>
#include <string.h>
#include <time.h>

enum {
    CLOSE_SECONDS = 2, /* to wait for a disk that has stalled */
    STACK_BYTES = 128 << 10,
};

const char *mmrt_reader_name(mmrt_reader reader) {
    static const char *const names[] = {
#define MMRT_READER(id, name, meaning) name,
#include "source/readers.def"
#undef MMRT_READER
    };
    return names[reader];
}

mmrt_status mmrt_reader_check(mmrt_reader reader, mmrt_mapping *mapping, mmrt_error *err) {
    mmrt_status status = reader == MMRT_READER_URING ? mmrt_uring_check(err) : MMRT_OK;
    if (status || reader == MMRT_READER_MAPPED)
        return status;
    struct mmrt_source_file file = {.mapping = mapping, .fd = -1};
    status = mmrt_direct_open(&file, err);
    mmrt_direct_close(&file);
    return status;
}

bool mmrt_threads_end(const pthread_t *threads, int *n) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += CLOSE_SECONDS;
    bool ended = true;
    for (; *n; (*n)--) {
        const pthread_t thread = threads[*n - 1];
        if (pthread_timedjoin_np(thread, NULL, &deadline) != 0) {
            pthread_detach(thread);
            ended = false;
        }
    }
    return ended;
}

bool mmrt_readers_stop(mmrt_source *source) {
    pthread_mutex_lock(&source->lock);
    const bool left_before = source->closing;
    source->closing = true;
    pthread_cond_broadcast(&source->reads);
    pthread_cond_broadcast(&source->loads);
    pthread_mutex_unlock(&source->lock);
    const bool ended = mmrt_threads_end(source->threads, &source->n_threads) && !left_before;
    source->closing = !ended;
    return ended;
}

mmrt_status mmrt_readers_start(mmrt_source *source, mmrt_error *err) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before; /* signals are the callers' */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool uring = source->reader == MMRT_READER_URING;
    int failed = 0;
    for (int i = uring ? -1 : 0; i < LOADER_THREADS && !failed; i++) {
        void *(*body)(void *) = i < 0   ? mmrt_reader_uring
                                : uring ? mmrt_reader_loading
                                        : mmrt_reader_blocking;
        failed = pthread_create(&source->threads[source->n_threads], &attributes, body, source);
        source->n_threads += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!failed)
        return MMRT_OK;
    mmrt_readers_stop(source);
    return mmrt_fail(err, MMRT_NO_MEMORY, "cannot start a reader thread: %s", strerror(failed));
}
