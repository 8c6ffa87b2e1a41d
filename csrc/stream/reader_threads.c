/* Readers that wait for what they read: O_DIRECT reads into slots, or populated pages. */
#include "stream/ring.h"

static void work_off(mmrt_stream *stream, int kinds) {
    struct mmrt_job job;
    while (mmrt_ring_take(stream, kinds, true, &job)) {
        mmrt_error error;
        const mmrt_status status = job.kind == MMRT_JOB_READ && stream->reader != MMRT_READER_MAPPED
                                       ? mmrt_direct_read(job.file, job.span, job.to, &error)
                                       : mmrt_load_unit(stream, &job, &error);
        if (job.kind == MMRT_JOB_LOAD && !status && stream->locks)
            mmrt_lock_unit(stream, job.unit);
        mmrt_ring_complete(stream, &job, status ? &error : NULL);
    }
}

void *mmrt_reader_blocking(void *stream) {
    work_off(stream, MMRT_JOB_READ | MMRT_JOB_LOAD);
    return NULL;
}

void *mmrt_reader_loading(void *stream) {
    work_off(stream, MMRT_JOB_LOAD);
    return NULL;
}
