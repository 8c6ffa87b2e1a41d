/* How fast a file's disk is, read as streams read it. */
#include "source/source.h"

#include "base/status.h"

#include <stdlib.h>
#include <time.h>

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static mmrt_status time_pass(mmrt_source *source, int32_t n_units, double *taken, mmrt_error *err) {
    mmrt_status status = mmrt_source_begin(source, err);
    if (status)
        return status;
    const double begun = seconds();
    for (int32_t i = 0; !status && i < n_units; i++) {
        bool ended;
        if (mmrt_source_acquire(source, i, -1, &ended))
            mmrt_source_release(source, i, 1);
        else
            status = mmrt_source_error(source, err);
    }
    *taken = seconds() - begun;
    mmrt_source_end(source, !status);
    return status;
}

mmrt_status mmrt_reader_probe(mmrt_reader reader, mmrt_mapping *mapping, uint64_t offset,
                              uint64_t length, double *bytes_per_second, mmrt_error *err) {
    enum { UNIT = (2 << 20) - 8192 };
    const int32_t n = (int32_t)((length + UNIT - 1) / UNIT);
    if (!length || offset > mmrt_mapping_size(mapping) ||
        length > mmrt_mapping_size(mapping) - offset)
        return mmrt_fail(err, MMRT_ARGUMENT, "no bytes to probe the disk with");
    struct mmrt_unit *units = calloc((size_t)n, sizeof *units);
    if (!units)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory to probe the disk with");
    for (int32_t i = 0; i < n; i++) {
        const uint64_t first = (uint64_t)i * UNIT, left = length - first;
        units[i] = (struct mmrt_unit){
            .rows = 1, .offset = offset + first, .bytes = left < UNIT ? left : UNIT};
    }
    mmrt_source *source = NULL;
    mmrt_plan plan;
    double taken = 1;
    mmrt_status status = mmrt_source_create(&mapping, 1, units, n, n, NULL, 0, &source, err);
    if (!status)
        status = mmrt_source_set_reader(source, reader, err);
    if (!status) {
        mmrt_source_plan(source, 0, &plan, NULL); /* the least, which keeps nothing */
        status = mmrt_source_set_budget(source, plan.least, err);
    }
    if (!status)
        status = time_pass(source, n, &taken, err);
    mmrt_source_free(source);
    free(units);
    *bytes_per_second = (double)length / taken;
    return status;
}
