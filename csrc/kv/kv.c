#define _GNU_SOURCE
#include "kv/kv.h"

#include "base/status.h"
#include "kernels/kernels.h"

#include <stdlib.h>
#include <sys/mman.h>

struct mmrt_kv {
    mmrt_kv_shape shape;
    uint64_t length;
    uint64_t n_pages;
    uint64_t room; /* of the table */
    uint8_t **pages;
};

/* Keys or values of one layer and head in one page: f16. */
static size_t part_bytes(mmrt_kv_shape shape) {
    return (size_t)shape.head_dim * MMRT_PAGE_KEYS * 2;
}

uint64_t mmrt_kv_page_bytes(mmrt_kv_shape shape) {
    return (uint64_t)shape.n_layers * shape.n_heads * 2 * part_bytes(shape);
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
    return ((size_t)layer * kv->shape.n_heads + head) * 2 * part_bytes(kv->shape);
}

size_t mmrt_kv_values_at(const mmrt_kv *kv, uint32_t layer, uint32_t head) {
    return mmrt_kv_keys_at(kv, layer, head) + part_bytes(kv->shape);
}

/* Pages come straight from the system, so that what a sequence gives back is really given back. */
mmrt_status mmrt_kv_reserve(mmrt_kv *kv, uint64_t length, mmrt_error *err) {
    const uint64_t wanted = (length + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS;
    const size_t bytes = mmrt_kv_page_bytes(kv->shape);
    if (wanted > kv->room) {
        uint64_t room = wanted + wanted / 2 + 8;
        uint8_t **pages = realloc(kv->pages, room * sizeof *pages);
        if (!pages)
            return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a table of %llu pages of keys",
                             (unsigned long long)room);
        kv->pages = pages;
        kv->room = room;
    }
    while (kv->n_pages < wanted) {
        void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) {
            mmrt_kv_truncate(kv, kv->length);
            return mmrt_fail(err, MMRT_NO_MEMORY,
                             "no memory for the keys and values of %llu tokens (%zu bytes a page)",
                             (unsigned long long)length, bytes);
        }
        kv->pages[kv->n_pages++] = page;
    }
    return MMRT_OK;
}

void mmrt_kv_set_length(mmrt_kv *kv, uint64_t length) {
    kv->length = length;
}

void mmrt_kv_truncate(mmrt_kv *kv, uint64_t length) {
    if (length < kv->length)
        kv->length = length;
    const uint64_t kept = (kv->length + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS;
    while (kv->n_pages > kept)
        munmap(kv->pages[--kv->n_pages], mmrt_kv_page_bytes(kv->shape));
}
