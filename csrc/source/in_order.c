/* Units that a pass uses in their order: a ring of slots that readers fill ahead of use, from the
 * end of one pass on into the next. All under the source's lock, but where it says otherwise. */
#include "source/inside.h"

#include "base/status.h"

#include <stdlib.h>
#include <sys/mman.h>

/* ---- its memory ---- */

void mmrt_ring_free(mmrt_source *source) {
    if (source->ring)
        munmap(source->ring, source->ring_bytes);
    free(source->slots);
    free(source->free_slots);
    source->ring = NULL;
    source->slots = NULL;
    source->free_slots = NULL;
    pthread_mutex_lock(&source->lock); /* statistics look at n_reading */
    source->n_slots = source->n_free = source->first_free = source->n_reading = 0;
    pthread_mutex_unlock(&source->lock);
}

static mmrt_status make_slots(mmrt_source *source, int32_t n_slots, mmrt_error *err) {
    source->slots = calloc((size_t)n_slots, sizeof *source->slots);
    source->free_slots = calloc((size_t)n_slots, sizeof *source->free_slots);
    if (!source->slots || !source->free_slots)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a ring of %d slots", n_slots);
    for (int32_t i = 0; i < n_slots; i++) {
        source->slots[i] = (struct slot){.unit = -1, .behind = -1};
        source->free_slots[i] = i;
    }
    return MMRT_OK;
}

mmrt_status mmrt_ring_make(mmrt_source *source, int32_t n_slots, mmrt_error *err) {
    mmrt_status status = make_slots(source, n_slots, err);
    if (!status && source->reader != MMRT_READER_MAPPED)
        status = mmrt_slots_map((size_t)n_slots * source->slot_bytes, &source->ring, err);
    source->ring_bytes = source->ring ? (size_t)n_slots * source->slot_bytes : 0;
    if (status)
        mmrt_ring_free(source);
    else
        source->n_slots = source->n_free = n_slots;
    return status;
}

/* ---- reading ---- */

/* Slots are used in turn, so that mapped pages are dropped well before they are needed again. */
static void free_slot(mmrt_source *source, int32_t slot) {
    source->free_slots[(source->first_free + source->n_free++) % source->n_slots] = slot;
    pthread_cond_signal(&source->reads);
}

static int32_t take_slot(mmrt_source *source) {
    const int32_t slot = source->free_slots[source->first_free];
    source->first_free = (source->first_free + 1) % source->n_slots;
    source->n_free--;
    return slot;
}

bool mmrt_ring_next(mmrt_source *source, struct mmrt_job *job) {
    if (!source->n_free || source->failed)
        return false;
    struct unit *unit = NULL;
    for (int32_t looked = 0; !unit && looked < source->cache.first; looked++) {
        struct unit *next = &source->units[source->cursor];
        if (next->state == UNIT_READING || next->state == UNIT_READY)
            return false; /* a whole pass ahead */
        if (next->state == UNIT_AWAY && !next->skipped && (!next->seldom || source->uses_seldom)) {
            unit = next;
        } else {
            next->skipped = false;
            source->cursor = (source->cursor + 1) % source->cache.first;
        }
    }
    if (!unit)
        return false;
    const int32_t number = source->cursor, slot = take_slot(source);
    *job = mmrt_read_job(source, number, slot, source->slots[slot].behind,
                         source->ring + (size_t)slot * source->slot_bytes);
    source->slots[slot] = (struct slot){.unit = number, .behind = -1};
    unit->slot = slot;
    unit->state = UNIT_READING;
    source->cursor = (source->cursor + 1) % source->cache.first;
    return true;
}

void mmrt_ring_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error) {
    struct slot *slot = &source->slots[job->slot];
    mmrt_count_read(source, job, error);
    if (source->reader == MMRT_READER_MAPPED)
        slot->behind = job->unit;
    if (slot->unit < 0) { /* detached during the read */
        free_slot(source, job->slot);
        return;
    }
    struct unit *unit = &source->units[job->unit];
    if (error) {
        mmrt_ring_detach(source, unit);
        free_slot(source, job->slot);
        mmrt_source_fail(source, job->unit, error);
        return;
    }
    atomic_store_explicit(&unit->rows_left, unit->range.rows, memory_order_relaxed);
    mmrt_unit_arrives(source, job);
}

void mmrt_ring_detach(mmrt_source *source, struct unit *unit) {
    const bool reading = unit->state == UNIT_READING, ready = unit->state == UNIT_READY;
    atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
    unit->state = UNIT_AWAY;
    unit->skipped = false;
    if (!reading && !ready)
        return;
    struct slot *slot = &source->slots[unit->slot];
    slot->unit = -1;
    if (ready)
        free_slot(source, unit->slot);
}

void mmrt_ring_rewind(mmrt_source *source) {
    for (int32_t i = 0; i < source->n_slots; i++)
        if (source->slots[i].unit >= 0)
            mmrt_ring_detach(source, &source->units[source->slots[i].unit]);
    for (int32_t i = 0; i < source->cache.first; i++)
        source->units[i].skipped = false;
    source->cursor = 0;
    pthread_cond_broadcast(&source->reads);
}

void mmrt_source_skip(mmrt_source *source, int32_t first, int32_t end) {
    if (is_on_demand(source, first)) /* nobody has wanted them */
        return;
    pthread_mutex_lock(&source->lock);
    for (int32_t i = first; i < end; i++) {
        struct unit *unit = &source->units[i];
        if (unit->state == UNIT_READING || unit->state == UNIT_READY)
            mmrt_ring_detach(source, unit);
        else
            unit->skipped = unit->state == UNIT_AWAY;
    }
    pthread_cond_broadcast(&source->reads);
    pthread_mutex_unlock(&source->lock);
}
