/* Which items stay in the cache. docs/streaming.md has the rule, which simulations follow to the
 * last bit: a change here is one there. */
#include "source/inside.h"

#include <math.h>

/* By a token: what an average keeps of itself. The fast one sees the last tokens, the slow one a
 * text. */
#define FAST 0.6
#define SLOW 0.98

/* Of the fast average in a score. */
#define FAST_WEIGHT 0.3

void mmrt_score_place(mmrt_source *source, struct slab *slab, int32_t slot, int32_t item) {
    slab->items[slot] = item;
    slab->scores[slot] = item < 0 ? -INFINITY : source->cache.items[item].score;
}

static void count_token(struct item *items, int32_t n_items, const uint32_t *chosen, size_t n) {
    for (int32_t i = 0; i < n_items; i++) {
        items[i].fast *= FAST;
        items[i].slow *= SLOW;
    }
    for (size_t i = 0; i < n; i++) {
        items[chosen[i]].fast += 1 - FAST;
        items[chosen[i]].slow += 1 - SLOW;
    }
}

void mmrt_score_count(mmrt_source *source, const struct mmrt_want *want) {
    struct cache *cache = &source->cache;
    const struct bank *bank = &cache->banks[want->bank];
    struct item *items = cache->items + bank->first_item;
    struct slab *slab = &cache->slabs[bank->slab];
    for (size_t t = 0; t < want->n_tokens; t++) {
        const uint32_t *chosen = want->recent + t * want->n_each;
        count_token(items, bank->shape.n_items, chosen, want->n_each);
        for (size_t i = 0; i < want->n_each; i++)
            items[chosen[i]].recent = cache->clock;
    }
    for (size_t i = 0; i < want->n; i++)
        items[want->items[i]].wanted = cache->clock;
    for (int32_t i = 0; i < bank->shape.n_items; i++) {
        struct item *item = &items[i];
        item->score = cache->policy == MMRT_POLICY_LRU ? (double)item->wanted
                                                       : FAST_WEIGHT * item->fast + item->slow;
        if (item->slot >= 0)
            slab->scores[item->slot] = item->score;
    }
}

/* Neither wanted now nor still being read for a pass that was broken off. */
static bool is_idle(const mmrt_source *source, int32_t number) {
    const struct item *item = &source->cache.items[number];
    if (item->wanted == source->cache.clock)
        return false;
    const int32_t n_parts = source->cache.banks[item->bank].shape.n_parts;
    for (int32_t part = 0; part < n_parts; part++)
        if (source->units[mmrt_part_unit(source, number, part)].state == UNIT_READING)
            return false;
    return true;
}

int32_t mmrt_score_victim(const mmrt_source *source, const struct slab *slab) {
    int32_t victim = -1;
    for (int32_t i = 0; i < slab->n_slots; i++) {
        if (slab->items[i] < 0)
            return i;
        const bool lower =
            victim < 0 || slab->scores[i] < slab->scores[victim] ||
            (slab->scores[i] <= slab->scores[victim] && slab->items[i] < slab->items[victim]);
        if (lower && is_idle(source, slab->items[i]))
            victim = i;
    }
    return victim;
}
