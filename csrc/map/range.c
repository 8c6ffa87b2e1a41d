/* Byte ranges of a mapping, and the pages that they make. */
#include "map/mapping.h"

#include "base/status.h"

uint64_t mmrt_mapped_bytes(const mmrt_mapping *mapping) {
    const uint64_t rest = mapping->size % mapping->unit;
    return mapping->size + (rest ? mapping->unit - rest : 0);
}

mmrt_status mmrt_check_range(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                             mmrt_error *err) {
    if (offset > mapping->size || length > mapping->size - offset)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "bytes %llu to %llu + %llu lie outside a mapping of %llu bytes",
                         (unsigned long long)offset, (unsigned long long)offset,
                         (unsigned long long)length, (unsigned long long)mapping->size);
    return MMRT_OK;
}

mmrt_pages mmrt_pages_touched(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    uint64_t start = offset - offset % mapping->page;
    uint64_t used = length ? offset - start + length : 0;
    uint64_t rest = used % mapping->page;
    return (mmrt_pages){start, rest ? used - rest + mapping->page : used};
}

mmrt_pages mmrt_pages_inside(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    uint64_t skip = offset % mapping->page ? mapping->page - offset % mapping->page : 0;
    if (length <= skip)
        return (mmrt_pages){offset, 0};
    mmrt_pages inside = {offset + skip, length - skip};
    if (offset + length == mapping->size)
        return mmrt_pages_touched(mapping, inside.start, inside.length);
    inside.length -= inside.length % mapping->page;
    return inside;
}

uint64_t mmrt_mapping_pages(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    return mmrt_pages_touched(mapping, offset, length).length / mapping->page;
}
