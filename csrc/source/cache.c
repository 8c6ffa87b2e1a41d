/* The slots of units on demand: how large they are, and how many. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/status.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t round_up(uint64_t bytes, uint64_t to) {
    return (bytes + to - 1) / to * to;
}

/* ---- how large ---- */

/* Whatever its offset in the file is. */
static uint64_t room_for(const mmrt_source *source, int32_t unit) {
    const struct mmrt_unit *range = &source->units[unit].range;
    const uint64_t align = source->files[range->file].align;
    return round_up(range->bytes + align - 1, align);
}

uint64_t mmrt_part_offset(const mmrt_source *source, int32_t item, int32_t part) {
    uint64_t offset = 0;
    for (int32_t i = 0; i < part; i++)
        offset += room_for(source, mmrt_part_unit(source, item, i));
    return offset;
}

/* The slab whose slots have this size. */
static int32_t slab_for(struct cache *cache, uint64_t slot_bytes) {
    int32_t i = 0;
    while (i < cache->n_slabs && cache->slabs[i].slot_bytes != slot_bytes)
        i++;
    if (i == cache->n_slabs)
        cache->slabs[cache->n_slabs++] = (struct slab){.slot_bytes = slot_bytes};
    return i;
}

void mmrt_cache_measure(mmrt_source *source) {
    struct cache *cache = &source->cache;
    uint64_t largest = 0;
    int32_t n_passing = 0;
    cache->n_slabs = 0;
    for (int32_t i = 0; i < cache->n_banks; i++) {
        struct bank *bank = &cache->banks[i];
        const int32_t n_parts = bank->shape.n_parts;
        /* One token's, and where that is a single item, the next one's. */
        const int32_t passing = n_parts * (bank->shape.n_wanted > 1 ? bank->shape.n_wanted : 2);
        n_passing = passing > n_passing ? passing : n_passing;
        bank->slab = slab_for(cache, mmrt_part_offset(source, bank->first_item, n_parts));
        cache->slabs[bank->slab].n_items += bank->shape.n_items;
        for (int32_t part = 0; part < n_parts; part++) {
            const uint64_t room = room_for(source, bank->first_unit + part);
            largest = room > largest ? room : largest;
        }
    }
    cache->passing.slot_bytes = largest;
    cache->passing.n_slots = n_passing;
}

/* Memory is taken in such pages. Those of a small slab are not huge: they would be a large part. */
static uint64_t page_of(const struct slab *slab) {
    enum { MANY = 32 };
    const bool huge = (uint64_t)slab->n_items * slab->slot_bytes >= (uint64_t)MANY * MMRT_HUGE_PAGE;
    return huge ? MMRT_HUGE_PAGE : 4096;
}

uint64_t mmrt_slab_bytes(const struct slab *slab, int32_t n_slots) {
    return round_up((uint64_t)n_slots * slab->slot_bytes, page_of(slab));
}

uint64_t mmrt_passing_bytes(const mmrt_source *source) {
    const struct passing *passing = &source->cache.passing;
    return (uint64_t)passing->n_slots * passing->slot_bytes;
}

int32_t mmrt_cache_share(const mmrt_source *source, const struct slab *slab, uint64_t bytes) {
    const struct cache *cache = &source->cache;
    uint64_t all = 0, rounding = 0;
    for (int32_t i = 0; i < cache->n_slabs; i++) {
        rounding += page_of(&cache->slabs[i]) - 4096; /* slots are whole pages */
        const uint64_t pages = cache->slabs[i].slot_bytes / 4096;
        all += (uint64_t)cache->slabs[i].n_items * pages * (4096 + MMRT_PAGE_COST);
    }
    if (bytes <= rounding)
        return 0;
    const double part = (double)(bytes - rounding) / (double)all;
    return part < 1 ? (int32_t)(part * slab->n_items) : slab->n_items;
}

/* ---- life ---- */

mmrt_status mmrt_cache_create(mmrt_source *source, const struct mmrt_bank *banks, int32_t n_banks,
                              mmrt_error *err) {
    struct cache *cache = &source->cache;
    int32_t unit = cache->first, n_items = 0, most_items = 0;
    for (int32_t i = 0; i < n_banks; i++) {
        n_items += banks[i].n_items;
        most_items = banks[i].n_items > most_items ? banks[i].n_items : most_items;
    }
    cache->banks = calloc((size_t)n_banks + 1, sizeof *cache->banks);
    cache->slabs = calloc((size_t)n_banks + 1, sizeof *cache->slabs);
    cache->items = calloc((size_t)n_items + 1, sizeof *cache->items);
    cache->missing = calloc((size_t)most_items + 1, sizeof *cache->missing);
    if (!cache->banks || !cache->slabs || !cache->items || !cache->missing)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan of %d units", source->n_units);
    cache->n_banks = n_banks;
    cache->n_items = n_items;
    int32_t item = 0;
    for (int32_t i = 0; i < n_banks; i++) {
        cache->banks[i] = (struct bank){banks[i], unit, item, 0, {0}};
        for (int32_t j = 0; j < banks[i].n_items; j++, item++) {
            cache->items[item] = (struct item){.bank = i, .slot = -1};
            for (int32_t part = 0; part < banks[i].n_parts; part++)
                source->units[unit++].item = item;
        }
    }
    return MMRT_OK;
}

void mmrt_cache_destroy(mmrt_source *source) {
    struct cache *cache = &source->cache;
    mmrt_cache_free(source);
    free(cache->banks);
    free(cache->slabs);
    free(cache->items);
    free(cache->missing);
}

static void free_slab(struct slab *slab) {
    if (slab->memory)
        munmap(slab->memory, slab->bytes);
    free(slab->items);
    free(slab->scores);
    free(slab->behind);
    slab->memory = NULL;
    slab->items = slab->behind = NULL;
    slab->scores = NULL;
    slab->room = 0;
}

void mmrt_cache_free(mmrt_source *source) {
    struct cache *cache = &source->cache;
    struct passing *passing = &cache->passing;
    for (int32_t i = 0; i < cache->n_items; i++)
        if (cache->items[i].slot >= 0)
            mmrt_item_evict(source, &cache->items[i]);
    for (int32_t i = 0; i < cache->n_slabs; i++)
        free_slab(&cache->slabs[i]);
    if (passing->memory)
        munmap(passing->memory, passing->bytes);
    free(passing->slots);
    free(passing->free_slots);
    free(cache->queue);
    mmrt_cache_forget(source);
}

void mmrt_cache_forget(mmrt_source *source) {
    struct cache *cache = &source->cache;
    struct passing *passing = &cache->passing;
    for (int32_t i = 0; i < cache->n_items; i++) {
        cache->items[i].slot = -1;
        cache->items[i].fast = cache->items[i].slow = cache->items[i].score = 0;
    }
    for (int32_t i = 0; i < cache->n_slabs; i++) {
        struct slab *slab = &cache->slabs[i];
        slab->memory = NULL;
        slab->items = slab->behind = NULL;
        slab->scores = NULL;
        slab->room = 0;
    }
    passing->memory = NULL;
    passing->slots = NULL;
    passing->free_slots = NULL;
    passing->n_free = 0;
    cache->queue = NULL;
    cache->head = cache->n_queued = cache->n_reading = 0;
    cache->made = false;
}

static mmrt_status make_slab(const mmrt_source *source, struct slab *slab, mmrt_error *err) {
    const size_t n = (size_t)slab->n_items;
    slab->items = malloc(n * sizeof *slab->items);
    slab->scores = malloc(n * sizeof *slab->scores);
    slab->behind = malloc(n * sizeof *slab->behind);
    if (!slab->items || !slab->scores || !slab->behind)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a cache of %zu units", n);
    for (size_t i = 0; i < n; i++) {
        slab->items[i] = slab->behind[i] = -1;
        slab->scores[i] = -INFINITY;
    }
    slab->room = slab->n_items;
    if (source->reader == MMRT_READER_MAPPED)
        return MMRT_OK;
    slab->bytes = mmrt_slab_bytes(slab, slab->room);
    const bool huge = page_of(slab) == MMRT_HUGE_PAGE;
    if (mmrt_slots_reserve(slab->bytes, huge, &slab->memory, NULL) == MMRT_OK)
        return MMRT_OK;
    slab->room = slab->n_slots; /* where addresses are rationed: it cannot grow then */
    slab->bytes = mmrt_slab_bytes(slab, slab->room);
    return slab->room ? mmrt_slots_reserve(slab->bytes, huge, &slab->memory, err) : MMRT_OK;
}

static mmrt_status make_passing(mmrt_source *source, mmrt_error *err) {
    struct passing *passing = &source->cache.passing;
    const size_t n = (size_t)passing->n_slots;
    passing->slots = malloc(n * sizeof *passing->slots);
    passing->free_slots = malloc(n * sizeof *passing->free_slots);
    if (!passing->slots || !passing->free_slots)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %zu slots", n);
    for (int32_t i = 0; i < passing->n_slots; i++) {
        passing->slots[i] = (struct slot){.unit = -1, .behind = -1};
        passing->free_slots[i] = passing->n_slots - 1 - i;
    }
    passing->n_free = passing->n_slots;
    passing->bytes = mmrt_passing_bytes(source);
    return source->reader == MMRT_READER_MAPPED
               ? MMRT_OK
               : mmrt_slots_map(passing->bytes, &passing->memory, err);
}

mmrt_status mmrt_cache_make(mmrt_source *source, mmrt_error *err) {
    struct cache *cache = &source->cache;
    cache->queue = malloc((size_t)(source->n_units - cache->first) * sizeof *cache->queue);
    mmrt_status status =
        cache->queue ? MMRT_OK : mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a cache of units");
    for (int32_t i = 0; !status && i < cache->n_slabs; i++)
        status = make_slab(source, &cache->slabs[i], err);
    if (!status)
        status = make_passing(source, err);
    if (status)
        mmrt_cache_free(source);
    pthread_mutex_lock(&source->lock);
    cache->made = status == MMRT_OK;
    pthread_mutex_unlock(&source->lock);
    return status;
}

/* ---- how many ---- */

void mmrt_item_evict(mmrt_source *source, struct item *item) {
    struct cache *cache = &source->cache;
    const struct bank *bank = &cache->banks[item->bank];
    mmrt_score_place(source, &cache->slabs[bank->slab], item->slot, -1);
    item->slot = -1;
    for (int32_t part = 0; part < bank->shape.n_parts; part++) {
        struct unit *unit =
            &source->units[mmrt_part_unit(source, (int32_t)(item - cache->items), part)];
        atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
        unit->state = UNIT_AWAY;
    }
}

/* To another slot of its slab, which is free. */
static void move_item(mmrt_source *source, struct slab *slab, int32_t number, int32_t slot) {
    struct item *item = &source->cache.items[number];
    const int32_t n_parts = source->cache.banks[item->bank].shape.n_parts, from = item->slot;
    uint8_t *to = slab->memory + (uint64_t)slot * slab->slot_bytes;
    const uint8_t *old = slab->memory + (uint64_t)from * slab->slot_bytes;
    if (slab->memory)
        memcpy(to, old, slab->slot_bytes);
    for (int32_t part = 0; slab->memory && part < n_parts; part++) {
        struct unit *unit = &source->units[mmrt_part_unit(source, number, part)];
        const uint8_t *at = atomic_load_explicit(&unit->at, memory_order_relaxed);
        if (at)
            atomic_store_explicit(&unit->at, to + (at - old), memory_order_relaxed);
    }
    mmrt_score_place(source, slab, from, -1);
    mmrt_score_place(source, slab, slot, number);
    item->slot = slot;
}

static void shrink(mmrt_source *source, struct slab *slab, int32_t n_slots) {
    const int32_t n_before = slab->n_slots;
    int32_t n_used = 0, hole = 0;
    for (int32_t i = 0; i < n_before; i++)
        n_used += slab->items[i] >= 0;
    while (n_used > n_slots) {
        int32_t lowest = -1; /* of those in use */
        for (int32_t i = 0; i < n_before; i++)
            if (slab->items[i] >= 0 && (lowest < 0 || slab->scores[i] < slab->scores[lowest]))
                lowest = i;
        const int32_t number = slab->items[lowest];
        const struct bank *bank = &source->cache.banks[source->cache.items[number].bank];
        mmrt_item_evict(source, &source->cache.items[number]);
        for (int32_t part = 0; !slab->memory && part < bank->shape.n_parts; part++)
            mmrt_drop_unit(source, mmrt_part_unit(source, number, part));
        n_used--;
    }
    for (int32_t i = n_slots; i < n_before; i++) {
        if (slab->items[i] < 0)
            continue;
        while (slab->items[hole] >= 0)
            hole++;
        move_item(source, slab, slab->items[i], hole);
    }
    const uint64_t end = mmrt_slab_bytes(slab, n_slots);
    if (slab->memory && end < slab->bytes)
        madvise(slab->memory + end, slab->bytes - end, MADV_DONTNEED);
}

void mmrt_cache_resize(mmrt_source *source, uint64_t bytes) {
    struct cache *cache = &source->cache;
    cache->bytes = bytes;
    for (int32_t i = 0; i < cache->n_slabs; i++) {
        struct slab *slab = &cache->slabs[i];
        int32_t n_slots = mmrt_cache_share(source, slab, bytes);
        if (cache->made && n_slots > slab->room)
            n_slots = slab->room;
        if (cache->made && n_slots < slab->n_slots)
            shrink(source, slab, n_slots);
        pthread_mutex_lock(&source->lock); /* of whoever asks for statistics */
        slab->n_slots = n_slots;
        pthread_mutex_unlock(&source->lock);
    }
}
