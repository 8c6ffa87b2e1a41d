/* Reading single rows past the ring. */
#define _GNU_SOURCE
#include "source/inside.h"

#include <fcntl.h>

uint64_t mmrt_source_read_scratch(uint64_t bytes) {
    return bytes + 3 * MMRT_DIRECT_MOST_ALIGN;
}

const uint8_t *mmrt_source_read(mmrt_source *source, int32_t index, uint64_t offset, uint64_t bytes,
                                void *scratch) {
    const struct mmrt_source_file *file = &source->files[index];
    const uintptr_t align = file->align;
    uint8_t *to = (uint8_t *)(((uintptr_t)scratch + align - 1) / align * align);
    struct mmrt_source_file buffered = {.mapping = file->mapping, .align = 1};
    mmrt_error error;
    if (file->fd < 0) {
        buffered.fd = mmrt_mapping_fd(file->mapping);
        file = &buffered;
    }
    const struct mmrt_span span = mmrt_direct_span(file, offset, bytes);
    if (mmrt_direct_read(file, span, to, &error) == MMRT_OK) {
        if (file == &buffered) { /* whole pages, but none that is mapped */
            const uint64_t page = mmrt_mapping_page_size(file->mapping), first = offset / page;
            posix_fadvise(file->fd, (off_t)(first * page),
                          (off_t)(((offset + bytes - 1) / page - first + 1) * page),
                          POSIX_FADV_DONTNEED);
        }
        return to + (offset - span.start);
    }
    mmrt_source_break_off(source, &error);
    return NULL;
}

void mmrt_source_drop(mmrt_source *source, int32_t index, uint64_t offset, uint64_t bytes) {
    mmrt_mapping_advise(source->files[index].mapping, offset, bytes, MMRT_ADVICE_EVICT, NULL);
}
