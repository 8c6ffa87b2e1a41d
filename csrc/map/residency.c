/* Which pages are in memory, as far as the kernel tells. */
#define _GNU_SOURCE
#include "map/mapping.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Whether each of `n` pages from address `start` is in this process' page table. */
static mmrt_status read_pagemap(const mmrt_mapping *mapping, uint64_t start, uint64_t n,
                                unsigned char *pages, mmrt_error *err) {
    enum { BATCH = 1024 };
    const uint64_t present = UINT64_C(1) << 63;
    uint64_t words[BATCH];

    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return mmrt_fail_errno(err, "cannot open /proc/self/pagemap");
    uint64_t first = ((uint64_t)(uintptr_t)mapping->data + start) / mapping->page;
    for (uint64_t done = 0; done < n;) {
        uint64_t batch = n - done < BATCH ? n - done : BATCH;
        ssize_t got = pread(fd, words, (size_t)batch * sizeof *words,
                            (off_t)((first + done) * sizeof *words));
        if (got < (ssize_t)sizeof *words) {
            if (got >= 0)
                errno = EIO;
            mmrt_status status = mmrt_fail_errno(err, "cannot read /proc/self/pagemap");
            close(fd);
            return status;
        }
        batch = (uint64_t)got / sizeof *words;
        for (uint64_t i = 0; i < batch; i++)
            pages[done + i] = (words[i] & present) != 0;
        done += batch;
    }
    close(fd);
    return MMRT_OK;
}

mmrt_status mmrt_mapping_residency(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                   unsigned char *pages, bool *trusted, mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    *trusted = mapping->truthful;
    mmrt_pages range = mmrt_pages_touched(mapping, offset, length);
    uint64_t n = range.length / mapping->page;
    if (n == 0)
        return MMRT_OK;
    if (!mapping->truthful)
        return read_pagemap(mapping, range.start, n, pages, err);

    if (mincore(mapping->data + range.start, (size_t)range.length, pages) != 0)
        return mmrt_fail_errno(err, "cannot ask which pages are resident");
    for (uint64_t i = 0; i < n; i++)
        pages[i] &= 1; /* the other bits are reserved */
    return MMRT_OK;
}

mmrt_status mmrt_mapping_mapped(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                unsigned char *pages, mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    mmrt_pages range = mmrt_pages_touched(mapping, offset, length);
    return read_pagemap(mapping, range.start, range.length / mapping->page, pages, err);
}
