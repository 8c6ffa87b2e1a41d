#define _GNU_SOURCE
#include "mmrt.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 /* older C libraries do not name it */
#endif

struct mmrt_mapping {
    int fd; /* kept open: eviction goes through it, and it says whether mincore() can be believed */
    unsigned char *data;
    uint64_t size;
    uint64_t page; /* bytes */
    int64_t modified_ns;
    bool truthful; /* mincore() tells this process the truth */
};

/* ---- opening ------------------------------------------------------------------------------- */

static const char *kind_of(mode_t mode) {
    if (S_ISDIR(mode))
        return "a directory";
    if (S_ISFIFO(mode))
        return "a FIFO";
    if (S_ISSOCK(mode))
        return "a socket";
    return "a device";
}

/* To all but the owner and those who may write the file, mincore() calls every page resident. */
static bool mincore_is_truthful(int fd, const struct stat *status) {
    if (status->st_uid == geteuid())
        return true;
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return faccessat(AT_FDCWD, link, W_OK, AT_EACCESS) == 0;
}

static mmrt_status check_file(const char *path, const struct stat *status, mmrt_error *err) {
    if (!S_ISREG(status->st_mode)) {
        errno = S_ISDIR(status->st_mode) ? EISDIR : ENODEV;
        return mmrt_fail_errno(err, "cannot map '%s', which is %s and not a regular file", path,
                               kind_of(status->st_mode));
    }
    if (status->st_size == 0)
        return mmrt_fail(err, MMRT_FORMAT, "%s: the file is empty", path);
    if ((uint64_t)status->st_size > SIZE_MAX)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "%s: %lld bytes do not fit this address space",
                         path, (long long)status->st_size);
    return MMRT_OK;
}

mmrt_status mmrt_mapping_open(const char *path, mmrt_mapping **out, mmrt_error *err) {
    *out = NULL;
    /* O_NONBLOCK: a FIFO is refused below instead of waited for; regular files ignore it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return mmrt_fail_errno(err, "cannot open '%s'", path);

    struct stat status;
    mmrt_status result;
    if (fstat(fd, &status) != 0)
        result = mmrt_fail_errno(err, "cannot examine '%s'", path);
    else
        result = check_file(path, &status, err);
    if (result != MMRT_OK) {
        close(fd);
        return result;
    }

    mmrt_mapping *mapping = malloc(sizeof *mapping);
    void *data =
        mapping ? mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (data == MAP_FAILED) {
        result =
            !mapping || errno == ENOMEM
                ? mmrt_fail(err, MMRT_NO_MEMORY, "no address space to map the %lld bytes of %s",
                            (long long)status.st_size, path)
                : mmrt_fail_errno(err, "cannot map '%s'", path);
        free(mapping);
        close(fd);
        return result;
    }
    *mapping = (mmrt_mapping){
        .fd = fd,
        .data = data,
        .size = (uint64_t)status.st_size,
        .page = (uint64_t)sysconf(_SC_PAGESIZE),
        .modified_ns = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec,
        .truthful = mincore_is_truthful(fd, &status),
    };
    *out = mapping;
    return MMRT_OK;
}

void mmrt_mapping_close(mmrt_mapping *mapping) {
    if (!mapping)
        return;
    munmap(mapping->data, (size_t)mapping->size);
    close(mapping->fd);
    free(mapping);
}

int mmrt_mapping_fd(const mmrt_mapping *mapping) {
    return mapping->fd;
}

const void *mmrt_mapping_data(const mmrt_mapping *mapping) {
    return mapping->data;
}

uint64_t mmrt_mapping_size(const mmrt_mapping *mapping) {
    return mapping->size;
}

uint64_t mmrt_mapping_page_size(const mmrt_mapping *mapping) {
    return mapping->page;
}

int64_t mmrt_mapping_modified_ns(const mmrt_mapping *mapping) {
    return mapping->modified_ns;
}

/* ---- ranges -------------------------------------------------------------------------------- */

/* Whole pages of the mapping, as a byte range. */
typedef struct page_range {
    uint64_t start;
    uint64_t length;
} page_range;

static mmrt_status check_range(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                               mmrt_error *err) {
    if (offset > mapping->size || length > mapping->size - offset)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "bytes %llu to %llu + %llu lie outside a mapping of %llu bytes",
                         (unsigned long long)offset, (unsigned long long)offset,
                         (unsigned long long)length, (unsigned long long)mapping->size);
    return MMRT_OK;
}

/* The pages that the (checked) range touches. */
static page_range pages_touched(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    uint64_t start = offset - offset % mapping->page;
    uint64_t used = length ? offset - start + length : 0;
    uint64_t rest = used % mapping->page;
    return (page_range){start, rest ? used - rest + mapping->page : used};
}

/* The pages that lie in the range whole. The last page of the file counts as whole. */
static page_range pages_inside(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    uint64_t skip = offset % mapping->page ? mapping->page - offset % mapping->page : 0;
    if (length <= skip)
        return (page_range){offset, 0};
    page_range inside = {offset + skip, length - skip};
    if (offset + length == mapping->size)
        return pages_touched(mapping, inside.start, inside.length);
    inside.length -= inside.length % mapping->page;
    return inside;
}

uint64_t mmrt_mapping_pages(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    return pages_touched(mapping, offset, length).length / mapping->page;
}

/* ---- advice -------------------------------------------------------------------------------- */

static mmrt_status evict(mmrt_mapping *mapping, page_range range, mmrt_error *err) {
    if (range.length == 0)
        return MMRT_OK;
    /* First out of this process' page table: the page cache keeps what is mapped anywhere. */
    if (madvise(mapping->data + range.start, (size_t)range.length, MADV_DONTNEED) != 0)
        return errno == EINVAL ? mmrt_fail(err, MMRT_ARGUMENT, "locked pages cannot be evicted")
                               : mmrt_fail_errno(err, "cannot unmap pages");
#ifdef POSIX_FADV_DONTNEED
    errno =
        posix_fadvise(mapping->fd, (off_t)range.start, (off_t)range.length, POSIX_FADV_DONTNEED);
    if (errno != 0)
        return mmrt_fail_errno(err, "cannot drop pages from the page cache");
#endif
    return MMRT_OK;
}

/* The kernel reads no more of one WILLNEED than the disk's read-ahead and drops the rest in
 * silence, so a range is asked for in pieces as small as the smallest usual read-ahead. */
static mmrt_status will_need(mmrt_mapping *mapping, page_range range, mmrt_error *err) {
    const uint64_t piece = 128 << 10;
    for (uint64_t done = 0; done < range.length; done += piece) {
        uint64_t length = range.length - done < piece ? range.length - done : piece;
        if (madvise(mapping->data + range.start + done, (size_t)length, MADV_WILLNEED) != 0)
            return mmrt_fail_errno(err, "cannot start reading pages");
    }
    return MMRT_OK;
}

static mmrt_status populate(mmrt_mapping *mapping, page_range range, mmrt_error *err) {
#ifdef MADV_POPULATE_READ
    int result;
    do
        result = madvise(mapping->data + range.start, (size_t)range.length, MADV_POPULATE_READ);
    while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result == 0)
        return MMRT_OK;
    if (errno == EFAULT)
        return mmrt_fail_errno(err, "cannot read pages: the file has shrunk or its disk failed");
    if (errno != EINVAL)
        return mmrt_fail_errno(err, "cannot populate pages");
#else
    (void)mapping, (void)range;
#endif
    return mmrt_fail(err, MMRT_UNSUPPORTED, "populating pages needs Linux 5.14 or later");
}

mmrt_status mmrt_mapping_advise(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_advice advice, mmrt_error *err) {
    mmrt_status status = check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;

    page_range range = pages_touched(mapping, offset, length);
    int hint;
    switch (advice) {
    case MMRT_ADVICE_NORMAL: hint = MADV_NORMAL; break;
    case MMRT_ADVICE_SEQUENTIAL: hint = MADV_SEQUENTIAL; break;
    case MMRT_ADVICE_RANDOM: hint = MADV_RANDOM; break;
    case MMRT_ADVICE_WILLNEED: return will_need(mapping, range, err);
    case MMRT_ADVICE_POPULATE_READ: return populate(mapping, range, err);
    case MMRT_ADVICE_EVICT: return evict(mapping, pages_inside(mapping, offset, length), err);
    default: return mmrt_fail(err, MMRT_ARGUMENT, "there is no advice number %d", (int)advice);
    }
    if (madvise(mapping->data + range.start, (size_t)range.length, hint) != 0)
        return mmrt_fail_errno(err, "cannot advise on pages");
    return MMRT_OK;
}

/* ---- locking ------------------------------------------------------------------------------- */

mmrt_status mmrt_mapping_lock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                              mmrt_error *err) {
    mmrt_status status = check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;
    page_range range = pages_touched(mapping, offset, length);
    if (mlock(mapping->data + range.start, (size_t)range.length) == 0)
        return MMRT_OK;

    struct rlimit limit;
    if ((errno == ENOMEM || errno == EPERM) && getrlimit(RLIMIT_MEMLOCK, &limit) == 0)
        return mmrt_fail(err, MMRT_NO_MEMORY,
                         "cannot lock %llu bytes: RLIMIT_MEMLOCK lets this process lock %llu",
                         (unsigned long long)range.length, (unsigned long long)limit.rlim_cur);
    return mmrt_fail_errno(err, "cannot lock pages");
}

mmrt_status mmrt_mapping_unlock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_error *err) {
    mmrt_status status = check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;
    page_range range = pages_touched(mapping, offset, length);
    if (munlock(mapping->data + range.start, (size_t)range.length) != 0)
        return mmrt_fail_errno(err, "cannot unlock pages");
    return MMRT_OK;
}

/* ---- residency ----------------------------------------------------------------------------- */

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
    mmrt_status status = check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    *trusted = mapping->truthful;
    page_range range = pages_touched(mapping, offset, length);
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
    mmrt_status status = check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    page_range range = pages_touched(mapping, offset, length);
    return read_pagemap(mapping, range.start, range.length / mapping->page, pages, err);
}
