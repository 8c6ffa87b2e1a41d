/* The pages of a sequence in a file: written there, and mapped from there. The block that their
 * last token has left may follow them; it is copied. */
#define _GNU_SOURCE
#include "state/store.h"

#include "base/status.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

/* Sums of the words and of these sums, in lanes that a compiler makes vectors of (J. G. Fletcher,
 * An Arithmetic Checksum for Serial Transmissions, 1982, with 64 bits for 32). */
enum { LANES = 8 };

struct sum {
    uint64_t words[LANES], sums[LANES];
};

static void add_bytes(struct sum *sum, const uint8_t *bytes, size_t n) {
    struct sum s = *sum;
    uint32_t word[LANES];
    for (size_t at = 0; at < n; at += sizeof word) { /* pages are whole groups of words */
        memcpy(word, bytes + at, sizeof word);
        for (int i = 0; i < LANES; i++) {
            s.words[i] += word[i];
            s.sums[i] += s.words[i];
        }
    }
    *sum = s;
}

static uint64_t digest(const struct sum *sum) {
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < LANES; i++) {
        h = (h ^ sum->words[i]) * 0xff51afd7ed558ccdu;
        h = ((h ^ h >> 32) + sum->sums[i]) * 0xc4ceb9fe1a85ec53u;
    }
    return h ^ h >> 29;
}

static mmrt_status require_pages(const mmrt_state_store *store, mmrt_error *err) {
    if (store->n_tables)
        return MMRT_OK;
    return mmrt_fail(err, MMRT_UNSUPPORTED, "no layer keeps keys and values, which files hold");
}

uint64_t mmrt_state_saved_bytes(const mmrt_state_store *store) {
    return store->extent_bytes;
}

/* ---- writing ---- */

static mmrt_status write_all(int fd, struct iovec *parts, int n, uint64_t offset, mmrt_error *err) {
    while (n) {
        const ssize_t done = pwritev(fd, parts, n, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done == 0)
            errno = ENOSPC;
        if (done <= 0)
            return mmrt_fail_errno(err, "cannot write keys and values");
        offset += (uint64_t)done;
        size_t left = (size_t)done;
        for (; n && left >= parts->iov_len; n--, parts++)
            left -= parts->iov_len;
        if (n) {
            parts->iov_base = (uint8_t *)parts->iov_base + left;
            parts->iov_len -= left;
        }
    }
    return MMRT_OK;
}

/* One head's keys and values of a layer in these pages, which lie in a row in the file. */
static mmrt_status write_head(uint8_t *const *pages, uint32_t n_pages,
                              const struct mmrt_state_layer *layer, uint32_t head, int fd,
                              uint64_t offset, struct sum *sum, mmrt_error *err) {
    const size_t at = mmrt_state_keys_at(layer, head);
    struct iovec parts[MMRT_EXTENT_PAGES];
    for (uint32_t i = 0; i < n_pages; i++) {
        parts[i] = (struct iovec){pages[i] + at, layer->page_bytes};
        add_bytes(sum, pages[i] + at, layer->page_bytes);
    }
    return write_all(fd, parts, (int)n_pages, offset + at, err);
}

mmrt_status mmrt_state_save(const mmrt_state *state, uint64_t first, uint64_t n, int fd,
                            uint64_t offset, uint64_t *sum, mmrt_error *err) {
    const mmrt_state_store *store = mmrt_state_store_of(state);
    mmrt_status status = require_pages(store, err);
    if (status)
        return status;
    if (!n || n > MMRT_SAVED_TOKENS || first % MMRT_SAVED_TOKENS ||
        first + n > mmrt_state_length(state))
        return mmrt_fail(err, MMRT_ARGUMENT, "tokens %llu to %llu of %llu cannot be saved",
                         (unsigned long long)first, (unsigned long long)(first + n),
                         (unsigned long long)mmrt_state_length(state));
    const uint32_t n_pages = (uint32_t)((n + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS);
    struct sum sums = {{0}, {0}};
    for (uint32_t i = 0; !status && i < store->n_layers; i++) {
        const struct mmrt_state_layer *layer = &store->layers[i];
        if (layer->spec.kind != MMRT_STATE_PAGES)
            continue;
        uint8_t *const *pages = mmrt_state_pages(state, layer->table) + first / MMRT_PAGE_KEYS;
        for (uint32_t head = 0; !status && head < layer->spec.n_heads; head++)
            status = write_head(pages, n_pages, layer, head, fd, offset, &sums, err);
    }
    const uint8_t *block = mmrt_state_block_at(state, first + n);
    if (!status && block) {
        struct iovec part = {(void *)(uintptr_t)block, store->block_bytes};
        add_bytes(&sums, block, store->block_bytes);
        status = write_all(fd, &part, 1, offset + store->extent_bytes, err);
    }
    if (!status) /* what a mapped file has lost reads as zeros */
        status = mmrt_state_check(state, err);
    *sum = digest(&sums);
    return status;
}

/* ---- mapping ---- */

static uint64_t sum_of(const mmrt_state_store *store, const uint8_t *base, uint32_t n_pages,
                       uint64_t block_bytes) {
    struct sum sums = {{0}, {0}};
    for (uint32_t i = 0; i < store->n_layers; i++) {
        const struct mmrt_state_layer *layer = &store->layers[i];
        for (uint32_t head = 0; layer->spec.kind == MMRT_STATE_PAGES && head < layer->spec.n_heads;
             head++)
            add_bytes(&sums, base + mmrt_state_keys_at(layer, head), n_pages * layer->page_bytes);
    }
    add_bytes(&sums, base + store->extent_bytes, block_bytes);
    return digest(&sums);
}

/* Reads the pages from the disk and compares them with their sum. */
static mmrt_status check_pages(const mmrt_state_store *store, mmrt_mapping *file, const char *path,
                               uint64_t n, uint64_t block_bytes, uint64_t sum, mmrt_error *err) {
    const uint32_t n_pages = (uint32_t)((n + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS);
    uint8_t *const base = mmrt_mapping_data(file);
    const uint64_t bytes = store->extent_bytes + block_bytes;
    madvise(base, bytes, MADV_WILLNEED);
    const uint64_t found = sum_of(store, base, n_pages, block_bytes);
    mmrt_status status = mmrt_mapping_check(file, 0, bytes, NULL, err);
    if (!status && found != sum)
        status = mmrt_fail(err, MMRT_FORMAT,
                           "%s: the saved keys and values do not give their checksum", path);
    return status;
}

static mmrt_status copy_block(mmrt_state_store *store, mmrt_mapping *file,
                              struct mmrt_block **block, mmrt_error *err) {
    mmrt_state_lock();
    mmrt_status status = mmrt_block_take(store, block, err);
    mmrt_state_unlock();
    if (!status)
        memcpy((*block)->bytes, (uint8_t *)mmrt_mapping_data(file) + store->extent_bytes,
               store->block_bytes);
    return status;
}

mmrt_status mmrt_state_attach(mmrt_state *state, const char *path, uint64_t offset, uint64_t n,
                              bool with_block, uint64_t sum, mmrt_error *err) {
    mmrt_state_store *store = mmrt_state_store_of(state);
    const uint64_t block_bytes = with_block ? store->block_bytes : 0;
    mmrt_status status = require_pages(store, err);
    if (status)
        return status;
    if (!n || n > MMRT_SAVED_TOKENS || mmrt_state_length(state) % MMRT_SAVED_TOKENS)
        return mmrt_fail(err, MMRT_ARGUMENT, "%llu saved tokens cannot follow %llu others",
                         (unsigned long long)n, (unsigned long long)mmrt_state_length(state));
    mmrt_mapping *file = NULL;
    status = mmrt_mapping_create(
        &(mmrt_map_request){
            .path = path, .fd = -1, .offset = offset, .length = store->extent_bytes + block_bytes},
        &file, err);
    if (!status)
        status = check_pages(store, file, path, n, block_bytes, sum, err);
    struct mmrt_block *block = NULL;
    if (!status && block_bytes)
        status = copy_block(store, file, &block, err);
    if (!status)
        status = mmrt_state_append(state, file, n, block, err);
    if (status) {
        mmrt_state_lock();
        mmrt_block_drop(store, &block);
        mmrt_state_unlock();
        mmrt_mapping_close(file);
    }
    return status;
}
