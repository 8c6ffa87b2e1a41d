#define _GNU_SOURCE
#include "kv/kv.h"

#include "base/status.h"
#include "kernels/kernels.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Address space is taken by blocks of so many pages. In a block, what one layer and head has of its
 * pages follows one another, as attention reads it: runs of 64 KiB are read twice as fast as runs
 * of 8 KiB. Memory is taken as pages are written. */
enum { BLOCK = 8 };

/* One call at a time changes it. At every instant between two stores it is a whole sequence of
 * `length` tokens, as a forked child finds it, and other threads may ask for its length and bytes:
 * the table is replaced before the old one is freed, a page is there before it is counted, and
 * counted no more before it goes. */
struct mmrt_kv {
    mmrt_kv_shape shape;
    _Atomic uint64_t length;
    _Atomic uint64_t n_pages;
    uint64_t room;           /* of the table, whole blocks; or less than it has */
    uint8_t **_Atomic pages; /* page 8 i is where block i starts */
};

uint32_t mmrt_kv_head_room(mmrt_kv_shape shape) {
    const bool groups = shape.k_type == MMRT_TYPE_Q8_0 || shape.v_type == MMRT_TYPE_Q8_0;
    const uint32_t whole = groups ? MMRT_GROUP : 16;
    return (shape.head_dim + whole - 1) / whole * whole;
}

/* Keys and values of one layer and head in one page. */
static size_t part_bytes(mmrt_kv_shape shape) {
    const size_t room = mmrt_kv_head_room(shape);
    return mmrt_page_bytes(shape.k_type, room) + mmrt_page_bytes(shape.v_type, room);
}

uint64_t mmrt_kv_page_bytes(mmrt_kv_shape shape) {
    return (uint64_t)shape.n_layers * shape.n_heads * part_bytes(shape);
}

/* What one layer and head has in a block: whole pages of the system, so that they can be given
 * back.
 */
static size_t run_bytes(mmrt_kv_shape shape) {
    const size_t system_page = (size_t)sysconf(_SC_PAGESIZE);
    return (BLOCK * part_bytes(shape) + system_page - 1) / system_page * system_page;
}

static size_t block_bytes(mmrt_kv_shape shape) {
    return (size_t)shape.n_layers * shape.n_heads * run_bytes(shape);
}

mmrt_status mmrt_kv_create(mmrt_kv_shape shape, mmrt_kv **out, mmrt_error *err) {
    mmrt_kv *kv = calloc(1, sizeof *kv);
    if (!kv)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a sequence");
    kv->shape = shape;
    *out = kv;
    return MMRT_OK;
}

void mmrt_kv_free(mmrt_kv *kv) {
    if (!kv)
        return;
    mmrt_kv_truncate(kv, 0);
    free(kv->pages);
    free(kv);
}

uint64_t mmrt_kv_length(const mmrt_kv *kv) {
    return kv->length;
}
uint64_t mmrt_kv_bytes(const mmrt_kv *kv) {
    return kv->n_pages * mmrt_kv_page_bytes(kv->shape);
}
uint8_t *const *mmrt_kv_pages(const mmrt_kv *kv) {
    return kv->pages;
}
mmrt_kv_shape mmrt_kv_shape_of(const mmrt_kv *kv) {
    return kv->shape;
}

size_t mmrt_kv_keys_at(const mmrt_kv *kv, uint32_t layer, uint32_t head) {
    return ((size_t)layer * kv->shape.n_heads + head) * run_bytes(kv->shape);
}

size_t mmrt_kv_values_at(const mmrt_kv *kv, uint32_t layer, uint32_t head) {
    return mmrt_kv_keys_at(kv, layer, head) +
           mmrt_page_bytes(kv->shape.k_type, mmrt_kv_head_room(kv->shape));
}

static mmrt_status grow_table(mmrt_kv *kv, uint64_t wanted, mmrt_error *err) {
    const uint64_t room = (wanted + wanted / 2 + BLOCK) / BLOCK * BLOCK;
    uint8_t **pages = malloc(room * sizeof *pages), **before = kv->pages;
    if (!pages)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a table of %llu pages of keys",
                         (unsigned long long)room);
    if (before)
        memcpy(pages, before, kv->n_pages * sizeof *pages);
    kv->pages = pages;
    kv->room = room;
    free(before);
    return MMRT_OK;
}

/* Blocks come straight from the system, so that what a sequence gives back is really given back. */
mmrt_status mmrt_kv_reserve(mmrt_kv *kv, uint64_t length, mmrt_error *err) {
    const uint64_t wanted = (length + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS;
    const size_t bytes = block_bytes(kv->shape);
    mmrt_status status = wanted > kv->room ? grow_table(kv, wanted, err) : MMRT_OK;
    if (status)
        return status;
    uint8_t **pages = kv->pages;
    for (uint64_t n = kv->n_pages; n < wanted; kv->n_pages = ++n) {
        if (n % BLOCK) {
            pages[n] = pages[n - 1] + part_bytes(kv->shape);
            continue;
        }
        void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED) {
            mmrt_kv_truncate(kv, kv->length);
            return mmrt_fail(err, MMRT_NO_MEMORY,
                             "no memory for the keys and values of %llu tokens (%zu bytes for %d)",
                             (unsigned long long)length, bytes, BLOCK * MMRT_PAGE_KEYS);
        }
        pages[n] = block;
    }
    return MMRT_OK;
}

void mmrt_kv_set_length(mmrt_kv *kv, uint64_t length) {
    kv->length = length;
}

/* The memory of the pages from `first` on in their block, which stays. */
static void give_back(const mmrt_kv *kv, uint64_t first) {
    const size_t system_page = (size_t)sysconf(_SC_PAGESIZE), run = run_bytes(kv->shape);
    size_t used = first % BLOCK * part_bytes(kv->shape);
    used = (used + system_page - 1) / system_page * system_page;
    uint8_t *block = kv->pages[first - first % BLOCK];
    for (size_t i = 0; used < run && i < (size_t)kv->shape.n_layers * kv->shape.n_heads; i++)
        madvise(block + i * run + used, run - used, MADV_DONTNEED);
}

void mmrt_kv_truncate(mmrt_kv *kv, uint64_t length) {
    if (length < kv->length)
        kv->length = length;
    const uint64_t kept = (kv->length + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS;
    if (kept < kv->n_pages && kept % BLOCK)
        give_back(kv, kept);
    while (kv->n_pages > kept) {
        const uint64_t last = --kv->n_pages;
        if (last % BLOCK == 0)
            munmap(kv->pages[last], block_bytes(kv->shape));
    }
}
