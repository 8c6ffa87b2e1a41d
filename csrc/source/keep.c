/* What a budget keeps in memory. */
#include "source/inside.h"
#include "source/order.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

enum {
    RING_BYTES = 64 << 20, /* keeps a fast disk busy: 32 << 20 lost a tenth of 2.4 GB/s */
    MOST_SLOTS = 64,
};

/* Slots of the ring for a budget that does not keep everything. */
static int32_t slots_for(uint64_t slot_bytes, uint64_t budget) {
    uint64_t slots = RING_BYTES / slot_bytes;
    if (slots > budget / 4 / slot_bytes)
        slots = budget / 4 / slot_bytes;
    if (slots > MOST_SLOTS)
        slots = MOST_SLOTS;
    return slots < MMRT_LEAST_SLOTS ? MMRT_LEAST_SLOTS : (int32_t)slots;
}

void mmrt_source_use_seldom(mmrt_source *source, int32_t unit) {
    source->units[unit].seldom = true;
}

void mmrt_source_keep_last(mmrt_source *source) {
    const size_t n = (size_t)source->cache.first;
    uint32_t *last = malloc((n + 1) * sizeof *last);
    size_t n_first = 0, n_last = 0;
    if (!last) /* others are kept, which is no fault */
        return;
    for (size_t i = 0; i < n; i++)
        if (source->units[source->order[i]].seldom)
            last[n_last++] = source->order[i];
        else
            source->order[n_first++] = source->order[i];
    memcpy(source->order + n_first, last, n_last * sizeof *last);
    free(last);
}

uint64_t mmrt_source_often(mmrt_source *source) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->lock);
    uint64_t cost = source->demand_cost;
    for (int32_t i = 0; i < source->cache.first; i++)
        cost += source->units[i].seldom ? 0 : source->costs[i];
    pthread_mutex_unlock(&source->lock);
    return cost;
}

struct choice {
    size_t n_kept; /* units that are used in order */
    int32_t n_slots;
    bool paged;     /* units on demand are in slots; else all of them are kept */
    uint64_t cache; /* bytes for these slots */
};

static uint64_t least_budget(const mmrt_source *source) {
    return (uint64_t)MMRT_LEAST_SLOTS * source->slot_bytes + mmrt_passing_bytes(source);
}

/* Under the lock, as sizes of slots depend on the reader. Units that every pass uses come first;
 * the rest of the budget is for units on demand. */
static mmrt_status choose(const mmrt_source *source, uint64_t budget, struct choice *out,
                          mmrt_error *err) {
    const size_t n = (size_t)source->cache.first;
    *out = (struct choice){.n_kept = n};
    if (source->total_cost + source->demand_cost <= budget)
        return MMRT_OK;
    const uint64_t cache = mmrt_passing_bytes(source), slot_bytes = source->slot_bytes;
    uint64_t left = budget > cache ? budget - cache : 0, used = source->total_cost;
    if (used > left) {
        out->n_slots = slots_for(slot_bytes, left);
        const uint64_t ring = (uint64_t)out->n_slots * slot_bytes;
        if (ring > left)
            return mmrt_fail(err, MMRT_NO_MEMORY,
                             "%llu bytes for weights are too few: the least is %llu",
                             (unsigned long long)budget, (unsigned long long)(ring + cache));
        out->n_kept = mmrt_keep_fit(source->costs, source->order, n, left - ring, &used);
        used += ring;
    }
    out->paged = cache > 0;
    out->cache = left - used;
    return MMRT_OK;
}

mmrt_status mmrt_source_plan(mmrt_source *source, uint64_t budget, mmrt_plan *plan,
                             mmrt_error *err) {
    struct choice choice;
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->lock);
    mmrt_status status = choose(source, budget, &choice, err);
    *plan = (mmrt_plan){
        .total = source->total_bytes,
        .ring = (uint64_t)choice.n_slots * source->slot_bytes,
        .request = source->slot_bytes,
        .experts = source->demand_bytes,
        .n_experts = (uint64_t)source->cache.n_items,
        .least = least_budget(source),
        .most = source->total_cost + source->demand_cost,
    };
    for (int32_t i = 0; i < source->cache.n_banks; i++) {
        const struct mmrt_bank *bank = &source->cache.banks[i].shape;
        const int32_t first = source->cache.banks[i].first_unit;
        for (int32_t part = 0; part < bank->n_parts; part++)
            plan->chosen += (uint64_t)bank->n_wanted * source->units[first + part].range.bytes;
    }
    for (size_t i = 0; !status && i < choice.n_kept; i++)
        plan->kept += source->units[source->order[i]].range.bytes;
    if (choice.paged)
        plan->cache = mmrt_passing_bytes(source);
    for (int32_t i = 0; choice.paged && i < source->cache.n_slabs; i++) {
        const struct slab *slab = &source->cache.slabs[i];
        const int32_t n_slots = mmrt_cache_share(source, slab, choice.cache);
        plan->cache += mmrt_slab_bytes(slab, n_slots);
        plan->slots += (uint64_t)n_slots;
    }
    pthread_mutex_unlock(&source->lock);
    return status;
}

int32_t mmrt_source_units(const mmrt_source *source) {
    return source->n_units;
}

void mmrt_source_kept(mmrt_source *source, uint64_t budget, bool *kept) {
    struct choice choice;
    memset(kept, 0, (size_t)source->n_units * sizeof *kept);
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->lock);
    const mmrt_status status = choose(source, budget, &choice, NULL);
    pthread_mutex_unlock(&source->lock);
    if (status)
        return;
    for (size_t i = 0; i < choice.n_kept; i++)
        kept[source->order[i]] = true;
    for (int32_t i = source->cache.first; i < source->n_units; i++)
        kept[i] = !choice.paged;
}

/* Under the lock. True if the unit's pages are to be dropped. */
static bool change(mmrt_source *source, int32_t index, bool streamed) {
    struct unit *unit = &source->units[index];
    if (unit->streamed == streamed)
        return false;
    unit->streamed = streamed;
    if (!streamed) {
        mmrt_ring_detach(source, unit);
        unit->state = UNIT_ABSENT;
        source->n_absent++;
        source->kept_bytes += unit->range.bytes;
        return false;
    }
    source->n_absent -= unit->state == UNIT_ABSENT;
    source->kept_bytes -= unit->range.bytes;
    const bool there = unit->state == UNIT_KEPT;
    mmrt_ring_detach(source, unit);
    if (index < source->cursor) /* or it would be read a pass late */
        mmrt_ring_rewind(source);
    return there;
}

/* The same for a unit on demand, while the cache has no slots. */
static bool page(mmrt_source *source, int32_t index, bool on_demand) {
    struct unit *unit = &source->units[index];
    if (unit->streamed == on_demand)
        return false;
    const bool was_kept = unit->state == UNIT_KEPT;
    unit->streamed = on_demand;
    source->n_absent -= unit->state == UNIT_ABSENT;
    source->n_absent += !on_demand;
    unit->state = on_demand ? UNIT_AWAY : UNIT_ABSENT;
    atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
    return on_demand && was_kept;
}

/* The first limit: from now on what is kept is loaded, and not left to faults. */
static void limit(mmrt_source *source) {
    for (int32_t i = 0; i < source->n_units; i++) {
        source->units[i].state = UNIT_ABSENT;
        atomic_store(&source->units[i].at, NULL);
    }
    source->n_absent = source->n_units;
    source->limited = true;
}

static mmrt_status apply(mmrt_source *source, const struct choice *choice, mmrt_error *err) {
    if (!source->limited && choice->n_kept == (size_t)source->cache.first && !choice->paged)
        return MMRT_OK;
    if (!source->limited)
        limit(source);
    pthread_mutex_lock(&source->lock);
    const bool reads = source->cache.n_reading > 0; /* for a pass that was broken off */
    pthread_mutex_unlock(&source->lock);
    if (choice->n_slots != source->n_slots || choice->paged != source->cache.made || reads) {
        mmrt_status status = mmrt_source_pause(source, err);
        if (status)
            return status;
    }
    if (!choice->paged && source->cache.made) /* then no reader runs now */
        mmrt_cache_free(source);
    pthread_mutex_lock(&source->lock);
    source->wanted_slots = choice->n_slots;
    source->cache.paged = choice->paged;
    pthread_mutex_unlock(&source->lock);
    mmrt_cache_resize(source, choice->cache);
    for (size_t i = 0; i < (size_t)source->n_units; i++) {
        const bool in_order = i < (size_t)source->cache.first;
        const int32_t index = in_order ? (int32_t)source->order[i] : (int32_t)i;
        pthread_mutex_lock(&source->lock);
        const bool drop = in_order ? change(source, index, i >= choice->n_kept)
                                   : page(source, index, choice->paged);
        pthread_mutex_unlock(&source->lock);
        if (drop)
            mmrt_drop_unit(source, index);
    }
    pthread_cond_broadcast(&source->loads);
    pthread_cond_broadcast(&source->reads);
    return MMRT_OK;
}

mmrt_status mmrt_source_set_budget(mmrt_source *source, uint64_t budget, mmrt_error *err) {
    struct choice choice;
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->lock);
    mmrt_status status = choose(source, budget, &choice, err);
    pthread_mutex_unlock(&source->lock);
    if (status)
        return status;
    pthread_mutex_lock(&source->pass);
    status = apply(source, &choice, err);
    pthread_mutex_unlock(&source->pass);
    return status;
}

void mmrt_source_lock_kept(mmrt_source *source) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->pass);
    source->locks = true;
    if (!source->limited)
        limit(source);
    pthread_mutex_unlock(&source->pass);
}
