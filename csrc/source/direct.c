#define _GNU_SOURCE
#include "source/direct.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Fits every usual disk and file system, where the kernel does not tell (before Linux 6.1). */
enum { USUAL_ALIGN = 4096 };

/* The file as it is now called, for messages. */
static const char *name_of(int fd, char name[256]) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, name, 255);
    name[n > 0 ? n : 0] = 0;
    return n > 0 ? name : "the file";
}

/* The alignment that the file system asks for; 0 if it says that it has no O_DIRECT. */
static uint32_t alignment(int fd) {
#ifdef STATX_DIOALIGN
    struct statx x;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 && (x.stx_mask & STATX_DIOALIGN)) {
        if (!x.stx_dio_offset_align)
            return 0;
        uint32_t align = USUAL_ALIGN; /* whole pages spare the kernel work */
        while (align < x.stx_dio_offset_align || align < x.stx_dio_mem_align)
            align *= 2;
        return align <= MMRT_DIRECT_MOST_ALIGN ? align : 0;
    }
#endif
    (void)fd;
    return USUAL_ALIGN;
}

/* Whether such reads work: some file systems only refuse the read. */
static mmrt_status try_reading(int fd, uint32_t align, bool *works, mmrt_error *err) {
    void *block = aligned_alloc(align, align);
    char name[256];
    if (!block)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory to try an O_DIRECT read");
    const ssize_t got = pread(fd, block, align, 0);
    *works = got > 0;
    mmrt_status status = MMRT_OK;
    if (got < 0 && errno != EINVAL && errno != EOPNOTSUPP)
        status = mmrt_fail_errno(err, "%s: cannot read", name_of(fd, name));
    free(block);
    return status;
}

mmrt_status mmrt_direct_open(struct mmrt_source_file *file, mmrt_error *err) {
    const int mapped = mmrt_mapping_fd(file->mapping);
    char link[32], name[256];
    /* The same file, whatever has become of its name. */
    snprintf(link, sizeof link, "/proc/self/fd/%d", mapped);
    const int fd = open(link, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0 && errno != EINVAL)
        return mmrt_fail_errno(err, "cannot open '%s' with O_DIRECT", name_of(mapped, name));
    const uint32_t align = fd < 0 ? 0 : alignment(fd);
    bool works = false;
    mmrt_status status = align ? try_reading(fd, align, &works, err) : MMRT_OK;
    if (!status && !works)
        status = mmrt_fail(err, MMRT_UNSUPPORTED, "%s: its file system has no O_DIRECT reads",
                           name_of(mapped, name));
    if (!status) {
        file->align = align;
        file->fd = fd;
    } else if (fd >= 0) {
        close(fd);
    }
    return status;
}

/* In this order, or a child forked in between would read whatever file has the number next. */
void mmrt_direct_close(struct mmrt_source_file *file) {
    const int fd = file->fd;
    file->fd = -1;
    if (fd >= 0)
        close(fd);
}

struct mmrt_span mmrt_direct_span(const struct mmrt_source_file *file, uint64_t offset,
                                  uint64_t bytes) {
    const uint64_t start = offset - offset % file->align, need = offset + bytes - start;
    return (struct mmrt_span){start, (need + file->align - 1) / file->align * file->align, need};
}

mmrt_status mmrt_direct_fail(const struct mmrt_source_file *file, uint64_t offset, int os_errno,
                             mmrt_error *err) {
    char name[256];
    const int fd = file->fd >= 0 ? file->fd : mmrt_mapping_fd(file->mapping);
    const unsigned long long byte = offset;
    struct stat now;
    name_of(fd, name);
    if (!os_errno && fstat(fd, &now) == 0 && (unsigned long long)now.st_size <= byte)
        return mmrt_fail(
            err, MMRT_IO,
            "%s: byte %llu is gone: the file was cut to %llu bytes while it was mapped", name, byte,
            (unsigned long long)now.st_size);
    if (!os_errno)
        return mmrt_fail(err, MMRT_IO, "%s: a read ended early, at byte %llu", name, byte);
    errno = os_errno;
    return mmrt_fail_errno(err, "%s: cannot read at byte %llu", name, byte);
}

mmrt_status mmrt_direct_read(const struct mmrt_source_file *file, struct mmrt_span span, void *to,
                             mmrt_error *err) {
    uint64_t done = 0;
    while (done < span.need) {
        const ssize_t got =
            pread(file->fd, (uint8_t *)to + done, span.length - done, (off_t)(span.start + done));
        if (got < 0 && errno == EINTR)
            continue;
        const uint64_t end = done + (got > 0 ? (uint64_t)got : 0);
        if (got < 0 || (end < span.need && end / file->align * file->align == done))
            return mmrt_direct_fail(file, span.start + end, got < 0 ? errno : 0, err);
        done = end < span.need ? end / file->align * file->align : end;
    }
    return MMRT_OK;
}
