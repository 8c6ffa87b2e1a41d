/* Units that are used on demand: a cache of slots. What is wanted and not there is read at once, in
 * place of what has gone unused for longest. */
#include "source/inside.h"

#include "base/status.h"

#include <stdlib.h>
#include <sys/mman.h>

void mmrt_cache_free(mmrt_source *source) {
    struct cache *cache = &source->cache;
    mmrt_cache_rest(source);
    for (int32_t i = 0; i < cache->n_slots; i++)
        if (cache->slots[i].unit >= 0) {
            struct unit *unit = &source->units[cache->slots[i].unit];
            unit->state = UNIT_AWAY;
            atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
        }
    if (cache->memory)
        munmap(cache->memory, cache->bytes);
    free(cache->slots);
    free(cache->queue);
    cache->memory = NULL;
    cache->slots = NULL;
    cache->queue = NULL;
    cache->n_slots = 0;
}

mmrt_status mmrt_cache_make(mmrt_source *source, int32_t n_slots, mmrt_error *err) {
    struct cache *cache = &source->cache;
    const size_t bytes = (size_t)n_slots * cache->slot_bytes;
    const size_t n_units = (size_t)(source->n_units - cache->first);
    cache->slots = calloc((size_t)n_slots, sizeof *cache->slots);
    cache->queue = calloc(n_units, sizeof *cache->queue);
    mmrt_status status = MMRT_OK;
    if (!cache->slots || !cache->queue)
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a cache of %d units", n_slots);
    else if (source->reader != MMRT_READER_MAPPED)
        status = mmrt_slots_map(bytes, &cache->memory, err);
    if (status) {
        mmrt_cache_free(source);
        return status;
    }
    cache->bytes = cache->memory ? bytes : 0;
    for (int32_t i = 0; i < n_slots; i++)
        cache->slots[i].unit = -1;
    cache->n_slots = n_slots;
    return MMRT_OK;
}

/* The slot whose unit has gone unused for longest; -1: all are in use. */
static int32_t victim(const mmrt_source *source) {
    const struct cache *cache = &source->cache;
    int32_t chosen = -1;
    for (int32_t i = 0; i < cache->n_slots; i++) {
        const struct cache_slot *slot = &cache->slots[i];
        if (slot->unit < 0)
            return i;
        const struct unit *unit = &source->units[slot->unit];
        if (unit->state != UNIT_READY ||
            atomic_load_explicit(&unit->rows_left, memory_order_acquire))
            continue;
        if (chosen < 0 || slot->used < cache->slots[chosen].used)
            chosen = i;
    }
    return chosen;
}

bool mmrt_cache_next(mmrt_source *source, struct mmrt_job *job) {
    struct cache *cache = &source->cache;
    const int32_t index = cache->n_queued ? victim(source) : -1;
    if (index < 0)
        return false;
    struct cache_slot *slot = &cache->slots[index];
    const int32_t evicted = slot->unit, number = cache->queue[cache->head];
    if (evicted >= 0) {
        atomic_store_explicit(&source->units[evicted].at, NULL, memory_order_relaxed);
        source->units[evicted].state = UNIT_AWAY;
    }
    cache->head = (cache->head + 1) % (source->n_units - cache->first);
    cache->n_queued--;
    *slot = (struct cache_slot){.unit = number, .used = cache->clock};
    struct unit *unit = &source->units[number];
    unit->slot = index;
    unit->state = UNIT_READING;
    uint8_t *to = cache->memory ? cache->memory + (size_t)index * cache->slot_bytes : NULL;
    *job = mmrt_read_job(source, number, index, evicted, to);
    return true;
}

void mmrt_cache_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error) {
    mmrt_count_read(source, job, error);
    if (!error) {
        mmrt_unit_arrives(source, job);
        return;
    }
    source->units[job->unit].state = UNIT_AWAY;
    source->cache.slots[job->slot].unit = -1;
    mmrt_source_fail(source, error);
}

void mmrt_cache_rest(mmrt_source *source) {
    source->cache.n_queued = 0;
    for (int32_t i = source->cache.first; i < source->n_units; i++) {
        struct unit *unit = &source->units[i];
        atomic_store_explicit(&unit->rows_left, 0, memory_order_relaxed);
        unit->state = unit->state == UNIT_WANTED ? UNIT_AWAY : unit->state;
    }
}

/* A read that an earlier pass left on its way, or unit that it left ready, serves this one. */
static void want(mmrt_source *source, int32_t index) {
    struct cache *cache = &source->cache;
    struct unit *unit = &source->units[index];
    atomic_store_explicit(&unit->rows_left, unit->range.rows, memory_order_relaxed);
    source->stats.wanted_units++;
    if (unit->state != UNIT_AWAY) {
        source->stats.found_units++;
        cache->slots[unit->slot].used = cache->clock;
        return;
    }
    unit->state = UNIT_WANTED;
    const int32_t room = source->n_units - cache->first;
    cache->queue[(cache->head + cache->n_queued++) % room] = index;
}

void mmrt_source_want(mmrt_source *source, const int32_t *units, size_t n) {
    if (!source->cache.n_slots) /* all are on mapped pages */
        return;
    pthread_mutex_lock(&source->lock);
    source->cache.clock++;
    for (size_t i = 0; i < n; i++)
        want(source, units[i]);
    pthread_cond_broadcast(&source->reads);
    pthread_mutex_unlock(&source->lock);
}
