/* Units on the pages of their mapped files. */
#include "source/inside.h"

const uint8_t *mmrt_mapped_unit(const mmrt_source *source, const struct unit *unit) {
    return (const uint8_t *)mmrt_mapping_data(source->files[unit->range.file].mapping) +
           unit->range.offset;
}

void mmrt_lock_unit(mmrt_source *source, int32_t index) {
    struct unit *unit = &source->units[index];
    const struct mmrt_unit *range = &unit->range;
    if (unit->locked || mmrt_mapping_lock(source->files[range->file].mapping, range->offset,
                                          range->bytes, false, NULL) != MMRT_OK)
        return;
    unit->locked = true;
    source->locked_bytes += range->bytes;
}

void mmrt_unlock_unit(mmrt_source *source, int32_t index) {
    struct unit *unit = &source->units[index];
    const struct mmrt_unit *range = &unit->range;
    if (!atomic_exchange(&unit->locked, false))
        return;
    mmrt_mapping_unlock(source->files[range->file].mapping, range->offset, range->bytes, NULL);
    source->locked_bytes -= range->bytes;
}

void mmrt_drop_unit(mmrt_source *source, int32_t index) {
    const struct mmrt_unit *range = &source->units[index].range;
    mmrt_unlock_unit(source, index);
    mmrt_mapping_advise(source->files[range->file].mapping, range->offset, range->bytes,
                        MMRT_ADVICE_EVICT, NULL); /* a request: what stays costs only memory */
}

/* The mapping is advised to read single pages, so that a fault brings in no neighbours; hence the
 * range is asked for first, and then waited for. */
mmrt_status mmrt_load_unit(mmrt_source *source, const struct mmrt_job *job, mmrt_error *err) {
    const struct mmrt_unit *range = &source->units[job->unit].range;
    mmrt_mapping *mapping = source->files[range->file].mapping;
    if (job->behind >= 0 && job->behind != job->unit)
        mmrt_drop_unit(source, job->behind);
    mmrt_status status =
        mmrt_mapping_advise(mapping, range->offset, range->bytes, MMRT_ADVICE_WILLNEED, err);
    if (!status)
        status = mmrt_mapping_advise(mapping, range->offset, range->bytes,
                                     MMRT_ADVICE_POPULATE_READ, err);
    if (status != MMRT_UNSUPPORTED)
        return status;
    const uint8_t *at = (const uint8_t *)mmrt_mapping_data(mapping) + range->offset;
    for (uint64_t i = 0; i < range->bytes; i += mmrt_mapping_page_size(mapping))
        (void)*(const volatile uint8_t *)(at + i);
    (void)*(const volatile uint8_t *)(at + range->bytes - 1);
    return MMRT_OK;
}
