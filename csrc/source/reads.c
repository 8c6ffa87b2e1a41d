/* A read from its begin to its end, whichever policy asked for it. All under the source's lock. */
#include "source/inside.h"

#include <time.h>

double mmrt_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct mmrt_job mmrt_read_job(mmrt_source *source, int32_t unit, int32_t slot, int32_t behind,
                              uint8_t *to) {
    const struct mmrt_unit *range = &source->units[unit].range;
    struct mmrt_job job = {
        .kind = MMRT_JOB_READ,
        .unit = unit,
        .slot = slot,
        .behind = behind,
        .file = &source->files[range->file],
        .to = to,
    };
    if (source->reader != MMRT_READER_MAPPED)
        job.span = mmrt_direct_span(job.file, range->offset, range->bytes);
    if (!source->n_reading++)
        source->busy_since = mmrt_seconds();
    return job;
}

void mmrt_count_read(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error) {
    if (!--source->n_reading)
        source->stats.busy_seconds += mmrt_seconds() - source->busy_since;
    if (!error)
        source->stats.read_bytes += source->reader == MMRT_READER_MAPPED
                                        ? source->units[job->unit].range.bytes
                                        : job->span.need;
}

void mmrt_unit_arrives(mmrt_source *source, const struct mmrt_job *job) {
    struct unit *unit = &source->units[job->unit];
    const uint8_t *at = source->reader == MMRT_READER_MAPPED
                            ? mmrt_mapped_unit(source, unit)
                            : job->to + (unit->range.offset - job->span.start);
    unit->state = UNIT_READY;
    atomic_store_explicit(&unit->at, at, memory_order_release);
}

void mmrt_source_fail(mmrt_source *source, int32_t unit, const mmrt_error *error) {
    if (!source->failed) {
        source->error = *error;
        source->failed_unit = unit;
    }
    source->failed = true;
}
