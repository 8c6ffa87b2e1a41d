/* Extents of pages and blocks: taking them, holding them together with others, giving them back. */
#define _GNU_SOURCE
#include "state/store.h"

#include "base/status.h"
#include "state/page.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void mmrt_state_lock(void) {
    pthread_mutex_lock(&lock);
}

void mmrt_state_unlock(void) {
    pthread_mutex_unlock(&lock);
}

/* Has every fork hold the lock. */
static mmrt_status guard_forks(mmrt_error *err) {
    static bool guarded;
    mmrt_state_lock();
    if (!guarded)
        guarded = pthread_atfork(mmrt_state_lock, mmrt_state_unlock, mmrt_state_unlock) == 0;
    const bool failed = !guarded;
    mmrt_state_unlock();
    return failed ? mmrt_fail(err, MMRT_NO_MEMORY, "no memory for sequences") : MMRT_OK;
}

/* ---- the store ---- */

static void free_store(mmrt_state_store *store) {
    if (store) {
        free(store->layers);
        free(store->slot_bytes);
    }
    free(store);
}

mmrt_status mmrt_state_store_create(const mmrt_layer_state *layers, uint32_t n_layers,
                                    mmrt_state_store **out, mmrt_error *err) {
    mmrt_status status = guard_forks(err);
    if (status)
        return status;
    mmrt_state_store *store = calloc(1, sizeof *store);
    if (store) {
        store->n_users = 1;
        store->n_layers = n_layers;
        store->layers = calloc((size_t)n_layers + 1, sizeof *store->layers);
        store->slot_bytes = calloc((size_t)n_layers + 1, sizeof *store->slot_bytes);
    }
    if (!store || !store->layers || !store->slot_bytes)
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for the state of %u layers", n_layers);
    else
        status = mmrt_state_lay_out(store, layers, err);
    if (status)
        free_store(store);
    else
        *out = store;
    return status;
}

mmrt_state_store *mmrt_state_store_use(mmrt_state_store *store) {
    mmrt_state_lock();
    store->n_users++;
    mmrt_state_unlock();
    return store;
}

void mmrt_state_store_free(mmrt_state_store *store) {
    if (!store)
        return;
    mmrt_state_lock();
    const bool last = --store->n_users == 0;
    mmrt_state_unlock();
    if (last)
        free_store(store);
}

uint64_t mmrt_state_store_bytes(mmrt_state_store *store) {
    mmrt_state_lock();
    const uint64_t bytes =
        store->n_pages * store->page_bytes + store->n_blocks * store->block_bytes;
    mmrt_state_unlock();
    return bytes;
}

void mmrt_state_store_sharing(mmrt_state_store *store, mmrt_state_sharing *sharing) {
    mmrt_state_lock();
    sharing->held = store->n_pages * store->page_bytes + store->n_blocks * store->block_bytes;
    sharing->logical =
        store->n_page_holds * store->page_bytes + store->n_block_holds * store->block_bytes;
    sharing->copies = store->n_copies;
    mmrt_state_unlock();
}

uint64_t mmrt_state_store_mapped_bytes(mmrt_state_store *store) {
    mmrt_state_lock();
    const uint64_t bytes = store->n_mapped * store->page_bytes;
    mmrt_state_unlock();
    return bytes;
}

uint64_t mmrt_state_page_bytes(const mmrt_state_store *store) {
    return store->page_bytes;
}

uint64_t mmrt_state_block_bytes(const mmrt_state_store *store) {
    return store->block_bytes;
}

uint32_t mmrt_state_n_layers(const mmrt_state_store *store) {
    return store->n_layers;
}

const struct mmrt_state_layer *mmrt_state_layer_at(const mmrt_state_store *store, uint32_t layer) {
    return layer < store->n_layers ? &store->layers[layer] : NULL;
}

static void *map(uint64_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* ---- extents ---- */

/* A bit for each page that nobody holds. */
static unsigned free_pages(const struct mmrt_extent *extent) {
    unsigned found = 0;
    for (unsigned i = 0; i < MMRT_EXTENT_PAGES; i++)
        found |= (unsigned)!extent->holders[i] << i;
    return found;
}

static const unsigned ALL_FREE = (1u << MMRT_EXTENT_PAGES) - 1;

/* Puts the extent into the list of spare ones or takes it out, as it should be. */
static void list_spare(mmrt_state_store *store, struct mmrt_extent *extent, bool spare) {
    if (spare == extent->spare)
        return;
    extent->spare = spare;
    if (spare) {
        extent->previous = NULL;
        extent->next = store->spares;
        if (extent->next)
            extent->next->previous = extent;
        store->spares = extent;
        return;
    }
    if (extent->next)
        extent->next->previous = extent->previous;
    if (extent->previous)
        extent->previous->next = extent->next;
    else
        store->spares = extent->next;
}

/* After a change of who holds its pages, or claims it. */
static void settle(mmrt_state_store *store, struct mmrt_extent *extent) {
    const unsigned unused = free_pages(extent);
    list_spare(store, extent, !extent->file && !extent->claimed && unused && unused != ALL_FREE);
    if (extent->claimed || unused != ALL_FREE)
        return;
    if (extent->file)
        mmrt_mapping_close(extent->file);
    else
        munmap(extent->base, store->extent_bytes);
    free(extent);
}

static struct mmrt_extent *new_extent(mmrt_state_store *store) {
    struct mmrt_extent *extent = calloc(1, sizeof *extent);
    if (!extent || !(extent->base = map(store->extent_bytes))) {
        free(extent);
        return NULL;
    }
    extent->number = store->n_extents++;
    return extent;
}

void mmrt_extent_claim(mmrt_state_store *store, struct mmrt_extent **open,
                       struct mmrt_extent *extent) {
    struct mmrt_extent *before = *open;
    if (before == extent)
        return;
    *open = extent && !extent->claimed && !extent->file ? extent : NULL;
    if (*open) {
        extent->claimed = true;
        settle(store, extent);
    }
    if (before) {
        before->claimed = false;
        settle(store, before);
    }
}

mmrt_status mmrt_extent_of_file(mmrt_state_store *store, mmrt_mapping *file, uint32_t n_pages,
                                struct mmrt_extent **out, mmrt_error *err) {
    struct mmrt_extent *extent = calloc(1, sizeof *extent);
    if (!extent)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for saved keys and values");
    extent->file = file;
    extent->number = store->n_extents++;
    extent->base = mmrt_mapping_data(file);
    for (uint32_t i = 0; i < n_pages; i++)
        extent->holders[i] = 1;
    store->n_mapped += n_pages;
    *out = extent;
    return MMRT_OK;
}

mmrt_status mmrt_page_take(mmrt_state_store *store, struct mmrt_extent **open,
                           struct mmrt_page *page, mmrt_error *err) {
    if (!*open || !free_pages(*open)) {
        struct mmrt_extent *extent = store->spares ? store->spares : new_extent(store);
        if (!extent)
            return mmrt_fail(
                err, MMRT_NO_MEMORY, "no memory for keys and values (%llu bytes for %d tokens)",
                (unsigned long long)store->extent_bytes, MMRT_EXTENT_PAGES * MMRT_PAGE_KEYS);
        mmrt_extent_claim(store, open, extent);
    }
    page->extent = *open;
    page->slot = (uint32_t)__builtin_ctz(free_pages(*open));
    page->extent->holders[page->slot] = 1;
    store->n_pages++;
    store->n_page_holds++;
    return MMRT_OK;
}

void mmrt_page_hold(mmrt_state_store *store, struct mmrt_page page) {
    page.extent->holders[page.slot]++;
    store->n_page_holds += !page.extent->file;
}

/* The memory of pages first to end - 1, which are free, while those around them are not. */
static void give_back(const mmrt_state_store *store, const struct mmrt_extent *extent,
                      unsigned first, unsigned end) {
    const size_t system_page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < store->n_layers; i++) {
        const struct mmrt_state_layer *layer = &store->layers[i];
        if (layer->spec.kind != MMRT_STATE_PAGES)
            continue;
        const size_t from =
            (first * layer->page_bytes + system_page - 1) / system_page * system_page;
        const size_t to = end == MMRT_EXTENT_PAGES
                              ? layer->head_bytes
                              : end * layer->page_bytes / system_page * system_page;
        for (uint32_t head = 0; from < to && head < layer->spec.n_heads; head++)
            madvise(extent->base + mmrt_state_keys_at(layer, head) + from, to - from,
                    MADV_DONTNEED);
    }
}

/* `freed`: a bit for each page that was held until now. */
static void give_back_runs(const mmrt_state_store *store, const struct mmrt_extent *extent,
                           unsigned freed) {
    const unsigned unused = free_pages(extent);
    for (unsigned first = 0, end; first < MMRT_EXTENT_PAGES; first = end + 1) {
        for (end = first; unused >> end & 1; end++)
            ;
        if (freed >> first & ((1u << (end - first)) - 1))
            give_back(store, extent, first, end);
    }
}

void mmrt_pages_drop(mmrt_state_store *store, const struct mmrt_page *pages, uint64_t n) {
    while (n) {
        struct mmrt_extent *extent = pages[n - 1].extent;
        unsigned freed = 0;
        for (; n && pages[n - 1].extent == extent; n--) {
            const uint32_t slot = pages[n - 1].slot;
            store->n_page_holds -= !extent->file;
            if (--extent->holders[slot] == 0)
                freed |= 1u << slot;
        }
        uint64_t *held = extent->file ? &store->n_mapped : &store->n_pages;
        *held -= (uint64_t)__builtin_popcount(freed);
        if (freed && !extent->file && (extent->claimed || free_pages(extent) != ALL_FREE))
            give_back_runs(store, extent, freed);
        settle(store, extent);
    }
}

mmrt_status mmrt_page_copy(mmrt_state_store *store, struct mmrt_page to, struct mmrt_page from,
                           mmrt_error *err) {
    store->n_copies++;
    for (uint32_t i = 0; i < store->n_layers; i++) {
        const struct mmrt_state_layer *layer = &store->layers[i];
        if (layer->spec.kind != MMRT_STATE_PAGES)
            continue;
        uint8_t *target = mmrt_page_address(store, to, layer->table);
        const uint8_t *source = mmrt_page_address(store, from, layer->table);
        for (uint32_t head = 0; head < layer->spec.n_heads; head++) {
            const size_t at = mmrt_state_keys_at(layer, head);
            memcpy(target + at, source + at, layer->page_bytes);
        }
    }
    return from.extent->file ? mmrt_mapping_check(from.extent->file, 0, 0, NULL, err) : MMRT_OK;
}

/* ---- blocks ---- */

mmrt_status mmrt_block_take(mmrt_state_store *store, struct mmrt_block **block, mmrt_error *err) {
    struct mmrt_block *new = calloc(1, sizeof *new);
    if (!new || !(new->bytes = map(store->block_bytes))) {
        free(new);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for the state of a sequence (%llu bytes)",
                         (unsigned long long)store->block_bytes);
    }
    new->holders = 1;
    store->n_blocks++;
    store->n_block_holds++;
    *block = new;
    return MMRT_OK;
}

void mmrt_block_hold(mmrt_state_store *store, struct mmrt_block *block) {
    block->holders++;
    store->n_block_holds++;
}

void mmrt_block_drop(mmrt_state_store *store, struct mmrt_block **block) {
    struct mmrt_block *dropped = *block;
    *block = NULL;
    if (!dropped)
        return;
    store->n_block_holds--;
    if (--dropped->holders)
        return;
    munmap(dropped->bytes, store->block_bytes);
    free(dropped);
    store->n_blocks--;
}
