/* Reading past the page cache, so that nothing but the kept weights is in it. */
#ifndef MMRT_SOURCE_DIRECT_H
#define MMRT_SOURCE_DIRECT_H

#include "mmrt.h"

enum { MMRT_DIRECT_MOST_ALIGN = 64 << 10 };

/* A file whose weights are streamed. */
struct mmrt_source_file {
    mmrt_mapping *mapping;
    int fd;         /* opened anew with O_DIRECT; -1 where the file system has no such reads */
    uint32_t align; /* of offsets, lengths and buffers; a power of two up to MOST_ALIGN */
};

/* Bytes that a read must cover so that offset, length and buffer are aligned. */
struct mmrt_span {
    uint64_t start;  /* in the file */
    uint64_t length; /* to ask for; the file may end before */
    uint64_t need;   /* of these, how many must come */
};

/* A failure leaves the file as it was. */
mmrt_status mmrt_direct_open(struct mmrt_source_file *file, mmrt_error *err);
void mmrt_direct_close(struct mmrt_source_file *file);

struct mmrt_span mmrt_direct_span(const struct mmrt_source_file *file, uint64_t offset,
                                  uint64_t bytes);

/* Reads a span into an aligned buffer. A short read goes on where it ended; the end of the file
 * before `need` bytes is an error, which names file and offset. */
mmrt_status mmrt_direct_read(const struct mmrt_source_file *file, struct mmrt_span span, void *to,
                             mmrt_error *err);

/* What a failed read says: os_errno, or 0 for a file that has no byte at `offset`. */
mmrt_status mmrt_direct_fail(const struct mmrt_source_file *file, uint64_t offset, int os_errno,
                             mmrt_error *err);

#endif
