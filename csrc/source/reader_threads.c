/* Readers that wait for what they read: O_DIRECT reads into slots, or populated pages. */
#include "source/inside.h"

static void work_off(mmrt_source *source, int kinds) {
    struct mmrt_job job;
    while (mmrt_job_take(source, kinds, true, &job)) {
        mmrt_error error;
        const mmrt_status status = job.kind == MMRT_JOB_READ && source->reader != MMRT_READER_MAPPED
                                       ? mmrt_direct_read(job.file, job.span, job.to, &error)
                                       : mmrt_load_unit(source, &job, &error);
        if (job.kind == MMRT_JOB_LOAD && !status && source->locks)
            mmrt_lock_unit(source, job.unit);
        mmrt_job_complete(source, &job, status ? &error : NULL);
    }
}

void *mmrt_reader_blocking(void *source) {
    work_off(source, MMRT_JOB_READ | MMRT_JOB_LOAD);
    return NULL;
}

void *mmrt_reader_loading(void *source) {
    work_off(source, MMRT_JOB_LOAD);
    return NULL;
}
