/* Units that are used on demand: what is wanted and not in the cache is read at once, into a slot
 * of the cache where its item may stay, or else into one for units that pass. All under the
 * source's lock. */
#include "source/inside.h"

#include <string.h>

/* ---- reading ---- */

/* A unit of an item that stays is read into its slot. */
static struct mmrt_job read_to_stay(mmrt_source *source, int32_t number) {
    struct unit *unit = &source->units[number];
    const struct item *item = &source->cache.items[unit->item];
    const struct slab *slab = &source->cache.slabs[source->cache.banks[item->bank].slab];
    const int32_t part = number - mmrt_part_unit(source, unit->item, 0);
    const int32_t evicted = slab->behind[item->slot];
    int32_t behind = -1;
    if (evicted >= 0 && part < source->cache.banks[source->cache.items[evicted].bank].shape.n_parts)
        behind = mmrt_part_unit(source, evicted, part);
    if (behind >= 0 && source->units[behind].state != UNIT_AWAY)
        behind = -1; /* it is back */
    uint8_t *to = slab->memory ? slab->memory + (uint64_t)item->slot * slab->slot_bytes +
                                     mmrt_part_offset(source, unit->item, part)
                               : NULL;
    unit->slot = -1;
    return mmrt_read_job(source, number, -1, behind, to);
}

static struct mmrt_job read_to_pass(mmrt_source *source, int32_t number) {
    struct passing *passing = &source->cache.passing;
    struct unit *unit = &source->units[number];
    const int32_t index = passing->free_slots[--passing->n_free];
    struct slot *slot = &passing->slots[index];
    int32_t behind = slot->behind;
    if (behind >= 0 && source->units[behind].state != UNIT_AWAY)
        behind = -1;
    *slot = (struct slot){.unit = number, .behind = -1};
    unit->slot = index;
    uint8_t *to = passing->memory ? passing->memory + (uint64_t)index * passing->slot_bytes : NULL;
    return mmrt_read_job(source, number, index, behind, to);
}

/* In turn, but what has a slot of its own does not wait for what is to pass. */
bool mmrt_cache_next(mmrt_source *source, struct mmrt_job *job) {
    struct cache *cache = &source->cache;
    for (int32_t i = cache->head; i < cache->n_queued; i++) {
        const int32_t number = cache->queue[i];
        if (number < 0)
            continue;
        const bool stays = cache->items[source->units[number].item].slot >= 0;
        if (!stays && !cache->passing.n_free)
            continue;
        cache->queue[i] = -1;
        while (cache->head < cache->n_queued && cache->queue[cache->head] < 0)
            cache->head++;
        source->units[number].state = UNIT_READING;
        *job = stays ? read_to_stay(source, number) : read_to_pass(source, number);
        cache->n_reading++;
        return true;
    }
    return false;
}

static void free_passing(mmrt_source *source, int32_t slot) {
    struct passing *passing = &source->cache.passing;
    passing->slots[slot].unit = -1;
    passing->free_slots[passing->n_free++] = slot;
    pthread_cond_broadcast(&source->reads);
}

void mmrt_cache_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error) {
    struct cache *cache = &source->cache;
    struct unit *unit = &source->units[job->unit];
    mmrt_demand_stats *stats = &cache->banks[cache->items[unit->item].bank].stats;
    mmrt_count_read(source, job, error);
    cache->n_reading--;
    if (!error) {
        stats->read_units++;
        stats->read_bytes += job->span.need ? job->span.need : unit->range.bytes;
    }
    struct slot *slot = job->slot < 0 ? NULL : &cache->passing.slots[job->slot];
    if (slot && source->reader == MMRT_READER_MAPPED)
        slot->behind = job->unit;
    if (slot && slot->unit < 0) { /* no longer wanted */
        free_passing(source, job->slot);
    } else if (!error) {
        mmrt_unit_arrives(source, job);
    } else {
        unit->state = UNIT_AWAY;
        if (slot)
            free_passing(source, job->slot);
        mmrt_source_fail(source, job->unit, error);
    }
}

void mmrt_unit_passed(mmrt_source *source, struct unit *unit) {
    atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
    unit->state = UNIT_AWAY;
    free_passing(source, unit->slot);
}

/* What is being read for an item that stays goes on. */
void mmrt_cache_rest(mmrt_source *source) {
    struct cache *cache = &source->cache;
    cache->head = cache->n_queued = 0;
    for (int32_t i = cache->first; cache->made && i < source->n_units; i++) {
        struct unit *unit = &source->units[i];
        const bool stays = cache->items[unit->item].slot >= 0;
        if (unit->state == UNIT_WANTED)
            unit->state = UNIT_AWAY;
        else if (unit->state == UNIT_READY && !stays)
            mmrt_unit_passed(source, unit);
        else if (unit->state == UNIT_READING && !stays) {
            cache->passing.slots[unit->slot].unit = -1;
            unit->state = UNIT_AWAY;
        }
    }
}

/* ---- wanting ---- */

/* Finds a slot for an item that has none, if it may stay. */
static void admit(mmrt_source *source, int32_t number) {
    struct cache *cache = &source->cache;
    struct item *item = &cache->items[number];
    struct slab *slab = &cache->slabs[cache->banks[item->bank].slab];
    const int32_t slot = mmrt_score_victim(source, slab);
    if (slot < 0)
        return;
    const int32_t victim = slab->items[slot];
    if (victim >= 0 && (item->recent != cache->clock || item->score < slab->scores[slot]))
        return;
    if (victim >= 0) {
        mmrt_item_evict(source, &cache->items[victim]);
        slab->behind[slot] = victim;
    }
    mmrt_score_place(source, slab, slot, number);
    item->slot = slot;
}

/* Whether all of the item is in its slot, or on its way there. */
static bool is_there(const mmrt_source *source, int32_t number) {
    const struct item *item = &source->cache.items[number];
    const int32_t n_parts = source->cache.banks[item->bank].shape.n_parts;
    for (int32_t part = 0; item->slot >= 0 && part < n_parts; part++)
        if (source->units[mmrt_part_unit(source, number, part)].state == UNIT_AWAY)
            return false; /* a pass was broken off */
    return item->slot >= 0;
}

static void enqueue(mmrt_source *source, int32_t number) {
    struct unit *unit = &source->units[number];
    if (unit->state != UNIT_AWAY)
        return;
    atomic_store_explicit(&unit->rows_left, unit->range.rows, memory_order_relaxed);
    unit->state = UNIT_WANTED;
    source->cache.queue[source->cache.n_queued++] = number;
}

/* Part [first, end) of each item, in turn. */
static void enqueue_parts(mmrt_source *source, int32_t first_item, const uint32_t *items, size_t n,
                          int32_t first, int32_t end) {
    for (size_t i = 0; i < n; i++)
        for (int32_t part = first; part < end; part++)
            enqueue(source, mmrt_part_unit(source, first_item + (int32_t)items[i], part));
}

static void want_items(mmrt_source *source, const struct mmrt_want *want) {
    struct cache *cache = &source->cache;
    struct bank *bank = &cache->banks[want->bank];
    uint32_t *missing = cache->missing;
    size_t n_found = 0, n_missing = 0;
    cache->head = cache->n_queued = 0;
    cache->clock++;
    mmrt_score_count(source, want);
    for (size_t i = 0; i < want->n; i++) {
        const uint32_t item = want->items[i];
        if (is_there(source, bank->first_item + (int32_t)item))
            want->items[n_found++] = item;
        else
            missing[n_missing++] = item;
    }
    bank->stats.wanted += want->n;
    bank->stats.found += n_found;
    for (size_t i = 0; i < n_missing; i++)
        if (cache->items[bank->first_item + (int32_t)missing[i]].slot < 0)
            admit(source, bank->first_item + (int32_t)missing[i]);
    memcpy(want->items + n_found, missing, n_missing * sizeof *missing);
    const int32_t together = bank->shape.n_together;
    enqueue_parts(source, bank->first_item, missing, n_missing, 0, together);
    for (int32_t part = together; part < bank->shape.n_parts; part++)
        enqueue_parts(source, bank->first_item, missing, n_missing, part, part + 1);
}

void mmrt_source_want(mmrt_source *source, const struct mmrt_want *want) {
    if (!source->cache.made) /* all are on mapped pages */
        return;
    pthread_mutex_lock(&source->lock);
    want_items(source, want);
    pthread_cond_broadcast(&source->reads);
    pthread_mutex_unlock(&source->lock);
}

/* ---- what it is set to, and has done ---- */

void mmrt_source_set_policy(mmrt_source *source, mmrt_policy policy) {
    pthread_mutex_lock(&source->lock);
    source->cache.policy = policy;
    pthread_mutex_unlock(&source->lock);
}

static mmrt_demand_stats stats_of(const mmrt_source *source, const struct bank *bank) {
    const struct slab *slab = &source->cache.slabs[bank->slab];
    mmrt_demand_stats stats = bank->stats;
    stats.slots = source->cache.paged ? (uint64_t)slab->n_slots : 0;
    stats.slot_bytes = slab->slot_bytes;
    return stats;
}

void mmrt_source_bank_stats(mmrt_source *source, int32_t bank, mmrt_demand_stats *stats) {
    pthread_mutex_lock(&source->lock);
    *stats = stats_of(source, &source->cache.banks[bank]);
    pthread_mutex_unlock(&source->lock);
}

void mmrt_cache_stats(const mmrt_source *source, mmrt_stream_stats *stats) {
    const struct cache *cache = &source->cache;
    mmrt_demand_stats *all = &stats->demand;
    if (cache->paged)
        stats->cache_bytes = mmrt_passing_bytes(source);
    for (int32_t i = 0; cache->paged && i < cache->n_slabs; i++) {
        stats->cache_bytes += mmrt_slab_bytes(&cache->slabs[i], cache->slabs[i].n_slots);
        all->slots += (uint64_t)cache->slabs[i].n_slots;
    }
    for (int32_t i = 0; i < cache->n_banks; i++) {
        const mmrt_demand_stats one = stats_of(source, &cache->banks[i]);
        all->wanted += one.wanted;
        all->found += one.found;
        all->read_units += one.read_units;
        all->read_bytes += one.read_bytes;
        all->stall_seconds += one.stall_seconds;
        all->slot_bytes = one.slot_bytes > all->slot_bytes ? one.slot_bytes : all->slot_bytes;
    }
}
