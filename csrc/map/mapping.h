/* What the parts of map/ share: a mapping from within, and byte ranges as whole pages. */
#ifndef MMRT_MAP_MAPPING_H
#define MMRT_MAP_MAPPING_H

#include "map/file.h"
#include "map/guard.h"

struct mmrt_mapping {
    char *name; /* of the file, for messages; NULL: there is none, the memory is its own */
    bool has_file;
    struct mmrt_file file;
    unsigned char *data;
    uint64_t size;   /* bytes */
    uint64_t offset; /* where in the file `data` begins */
    uint64_t page;   /* bytes */
    uint64_t unit;   /* bytes; the page, or a reserved huge page: only whole ones can be unmapped */
    int64_t modified_ns;
    bool writable;
    bool truthful; /* mincore() tells this process the truth */
    struct mmrt_guard *guard;
    struct mmrt_loss loss;
};

/* Whole pages of the mapping, as a byte range. */
typedef struct mmrt_pages {
    uint64_t start;
    uint64_t length;
} mmrt_pages;

/* Bytes that are mapped: the size in whole units. */
uint64_t mmrt_mapped_bytes(const mmrt_mapping *mapping);

/* ARGUMENT unless the range lies in the mapping. */
mmrt_status mmrt_check_range(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                             mmrt_error *err);

/* The pages that the (checked) range touches. */
mmrt_pages mmrt_pages_touched(const mmrt_mapping *mapping, uint64_t offset, uint64_t length);

/* The pages that lie in the range whole. The last page of the mapping counts as whole. */
mmrt_pages mmrt_pages_inside(const mmrt_mapping *mapping, uint64_t offset, uint64_t length);

/* The failure of a call that would lock so many bytes. */
mmrt_status mmrt_fail_locking(uint64_t bytes, mmrt_error *err);

#endif
