/* A source's life, and its passes. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/owner.h"
#include "base/status.h"
#include "source/order.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { FAULTS_OF_A_PASS = 32 /* more of them: kept pages were taken away */ };

/* ---- life ---- */

static void close_files(mmrt_source *source) {
    for (int32_t i = 0; i < source->n_files; i++)
        mmrt_direct_close(&source->files[i]);
}

static uint64_t slot_for(const mmrt_source *source, int32_t first, int32_t end) {
    uint64_t most = 0;
    for (int32_t i = first; i < end; i++) {
        const struct mmrt_unit *range = &source->units[i].range;
        const uint64_t align = source->files[range->file].align;
        const uint64_t slot = (range->bytes + 2 * align + 4095) / 4096 * 4096;
        most = slot > most ? slot : most;
    }
    return most;
}

static void measure_slots(mmrt_source *source) {
    pthread_mutex_lock(&source->lock); /* of whoever asks for plans and statistics */
    source->slot_bytes = slot_for(source, 0, source->cache.first);
    mmrt_cache_measure(source);
    pthread_mutex_unlock(&source->lock);
}

static void measure_units(mmrt_source *source, const struct mmrt_unit *units) {
    for (int32_t i = 0; i < source->n_units; i++) {
        struct unit *unit = &source->units[i];
        mmrt_mapping *mapping = source->files[units[i].file].mapping;
        unit->range = units[i];
        unit->state = UNIT_KEPT;
        unit->at = mmrt_mapped_unit(source, unit);
        const uint64_t pages = mmrt_mapping_pages(mapping, units[i].offset, units[i].bytes);
        source->costs[i] = pages * (mmrt_mapping_page_size(mapping) + MMRT_PAGE_COST);
        *(is_on_demand(source, i) ? &source->demand_cost : &source->total_cost) += source->costs[i];
        *(is_on_demand(source, i) ? &source->demand_bytes : &source->total_bytes) += units[i].bytes;
    }
    source->kept_bytes = source->total_bytes;
    mmrt_keep_order(source->costs, (size_t)source->cache.first, source->order);
    measure_slots(source);
}

static void start_locks(mmrt_source *source) {
    pthread_mutex_init(&source->pass, NULL);
    pthread_mutex_init(&source->lock, NULL);
    pthread_cond_init(&source->ready, NULL);
    pthread_cond_init(&source->reads, NULL);
    pthread_cond_init(&source->loads, NULL);
}

mmrt_status mmrt_source_create(mmrt_mapping *const *files, int32_t n_files,
                               const struct mmrt_unit *units, int32_t n_units, int32_t n_in_order,
                               const struct mmrt_bank *banks, int32_t n_banks, mmrt_source **out,
                               mmrt_error *err) {
    mmrt_source *source = calloc(1, sizeof *source);
    if (!source)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a source of weights");
    start_locks(source);
    source->reader = MMRT_READER_MAPPED; /* it needs nothing */
    source->failed_unit = -1;
    source->uses_seldom = true;
    mmrt_owner_set(&source->owner, false);
    source->files = calloc((size_t)n_files + 1, sizeof *source->files);
    source->units = calloc((size_t)n_units + 1, sizeof *source->units);
    source->costs = calloc((size_t)n_units + 1, sizeof *source->costs);
    source->order = calloc((size_t)n_units + 1, sizeof *source->order);
    if (!source->files || !source->units || !source->costs || !source->order) {
        mmrt_source_free(source);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan of %d units", n_units);
    }
    source->n_files = n_files;
    source->n_units = n_units;
    source->cache.first = n_in_order;
    for (int32_t i = 0; i < n_files; i++)
        source->files[i] = (struct mmrt_source_file){.mapping = files[i], .fd = -1, .align = 4096};
    mmrt_status status = mmrt_cache_create(source, banks, n_banks, err);
    if (status) {
        mmrt_source_free(source);
        return status;
    }
    measure_units(source, units);
    *out = source;
    return MMRT_OK;
}

/* A forked child has neither the parent's threads nor the ring nor its contents, and finds all else
 * as the fork left it, possibly in the middle of another thread's change. It trusts only the plan,
 * that is, which units are streamed, and starts over with the rest as if the plan had just been
 * set. The ring's tables are not freed: that may have happened already. */
static void reset_after_fork(mmrt_source *source) {
    start_locks(source);
    source->ring = NULL;
    source->slots = NULL;
    source->free_slots = NULL;
    source->n_slots = source->n_free = source->first_free = 0;
    mmrt_cache_forget(source);
    source->n_threads = source->n_reading = source->n_waiting = source->n_absent = 0;
    source->cursor = source->load_cursor = 0;
    source->failed = source->interrupted = source->closing = source->complete = false;
    source->kept_bytes = 0;
    source->locked_bytes = 0; /* locks are not inherited */
    for (int32_t i = 0; i < source->n_units; i++) {
        struct unit *unit = &source->units[i];
        unit->locked = unit->skipped = false;
        unit->streamed = is_on_demand(source, i) ? source->cache.paged : unit->streamed;
        unit->rows_left = 0;
        unit->at = source->limited ? NULL : mmrt_mapped_unit(source, unit);
        unit->state = !source->limited ? UNIT_KEPT : unit->streamed ? UNIT_AWAY : UNIT_ABSENT;
        source->n_absent += unit->state == UNIT_ABSENT;
        source->kept_bytes += unit->streamed || is_on_demand(source, i) ? 0 : unit->range.bytes;
    }
    if (source->kept_bytes < source->total_bytes && source->wanted_slots < MMRT_LEAST_SLOTS)
        source->wanted_slots = MMRT_LEAST_SLOTS;
}

void mmrt_source_adopt(mmrt_source *source) {
    if (mmrt_owner_changes(&source->owner)) {
        reset_after_fork(source);
        mmrt_owner_set(&source->owner, false);
    }
}

mmrt_status mmrt_source_pause(mmrt_source *source, mmrt_error *err) {
    const bool ended = mmrt_readers_stop(source);
    source->complete = false;
    if (!ended)
        return mmrt_fail(err, MMRT_IO, "a read does not end: the disk does not answer");
    mmrt_ring_rewind(source);
    mmrt_ring_free(source);
    mmrt_cache_rest(source);
    return MMRT_OK;
}

void mmrt_source_free(mmrt_source *source) {
    if (!source)
        return;
    mmrt_source_adopt(source);
    if (mmrt_source_pause(source, NULL) != MMRT_OK)
        return; /* a read may still come: its memory has to stay */
    mmrt_cache_destroy(source);
    for (int32_t i = 0; i < source->n_units; i++)
        mmrt_unlock_unit(source, i);
    close_files(source);
    pthread_mutex_destroy(&source->pass);
    pthread_mutex_destroy(&source->lock);
    pthread_cond_destroy(&source->ready);
    pthread_cond_destroy(&source->reads);
    pthread_cond_destroy(&source->loads);
    free(source->files);
    free(source->units);
    free(source->costs);
    free(source->order);
    free(source);
}

static mmrt_status change_reader(mmrt_source *source, mmrt_reader reader, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i < source->n_files; i++)
        status = mmrt_reader_check(reader, source->files[i].mapping, err);
    if (!status)
        status = mmrt_source_pause(source, err);
    if (status)
        return status;
    mmrt_cache_free(source);
    source->reader = MMRT_READER_MAPPED; /* which uses no descriptors */
    close_files(source);
    for (int32_t i = 0; !status && i < source->n_files && reader != MMRT_READER_MAPPED; i++)
        status = mmrt_direct_open(&source->files[i], err);
    measure_slots(source);
    mmrt_cache_resize(source, source->cache.bytes);
    if (!status)
        source->reader = reader;
    return status;
}

mmrt_status mmrt_source_set_reader(mmrt_source *source, mmrt_reader reader, mmrt_error *err) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->pass);
    mmrt_status status = reader == source->reader ? MMRT_OK : change_reader(source, reader, err);
    pthread_mutex_unlock(&source->pass);
    return status;
}

/* ---- passes ---- */

/* Major faults of this process so far. */
static int64_t major_faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_majflt;
}

/* Marks the units whose pages the system has taken back, so that they are loaded again together and
 * ahead of use, not page by page by faults. */
static void mark_evicted_units(mmrt_source *source) {
    for (int32_t i = 0; i < source->n_units; i++) {
        struct unit *unit = &source->units[i];
        if (unit->state != UNIT_KEPT)
            continue;
        mmrt_mapping *mapping = source->files[unit->range.file].mapping;
        const uint64_t n = mmrt_mapping_pages(mapping, unit->range.offset, unit->range.bytes);
        unsigned char *pages = malloc(n);
        bool trusted;
        if (pages &&
            mmrt_mapping_residency(mapping, unit->range.offset, unit->range.bytes, pages, &trusted,
                                   NULL) == MMRT_OK &&
            memchr(pages, 0, n)) {
            unit->state = UNIT_ABSENT;
            atomic_store(&unit->at, NULL);
            source->n_absent++;
        }
        free(pages);
    }
}

/* Faults bring in single pages from now on, and what the page cache holds of units that are not
 * kept is let go. */
static mmrt_status prepare(mmrt_source *source, mmrt_error *err) {
    for (int32_t i = 0; i < source->n_files; i++) {
        mmrt_mapping *mapping = source->files[i].mapping;
        mmrt_status status =
            mmrt_mapping_advise(mapping, 0, mmrt_mapping_size(mapping), MMRT_ADVICE_RANDOM, err);
        if (status)
            return status;
    }
    for (int32_t i = 0; i < source->n_units; i++)
        if (source->units[i].streamed)
            mmrt_drop_unit(source, i);
    source->prepared = true;
    return MMRT_OK;
}

/* Under the pass. */
static mmrt_status make_ready(mmrt_source *source, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    if (source->closing)
        return mmrt_fail(err, MMRT_IO, "the disk has not answered: the model has to be reopened");
    if (source->limited && !source->prepared)
        status = prepare(source, err);
    if (!status && source->n_slots != source->wanted_slots)
        status = mmrt_ring_make(source, source->wanted_slots, err);
    if (!status && source->cache.paged && !source->cache.made)
        status = mmrt_cache_make(source, err);
    pthread_mutex_lock(&source->lock);
    const uint64_t loaded = source->stats.loaded_bytes;
    if (source->limited && source->loaded_before == loaded &&
        major_faults() - source->faults > FAULTS_OF_A_PASS)
        mark_evicted_units(source);
    source->loaded_before = loaded;
    source->faults = major_faults();
    if (!source->complete || source->failed) /* a read ahead of this pass may be what failed */
        mmrt_ring_rewind(source);
    source->failed = source->interrupted = source->complete = false;
    const bool work = source->n_slots || source->n_absent || source->cache.made;
    pthread_cond_broadcast(&source->reads);
    pthread_cond_broadcast(&source->loads);
    pthread_mutex_unlock(&source->lock);
    return status || !work || source->n_threads ? status : mmrt_readers_start(source, err);
}

mmrt_status mmrt_source_begin(mmrt_source *source, mmrt_error *err) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->pass);
    mmrt_status status = make_ready(source, err);
    if (status)
        pthread_mutex_unlock(&source->pass);
    return status;
}

void mmrt_source_hold(mmrt_source *source) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->pass);
}

void mmrt_source_let_go(mmrt_source *source) {
    pthread_mutex_unlock(&source->pass);
}

void mmrt_source_uses(mmrt_source *source, bool seldom) {
    pthread_mutex_lock(&source->lock);
    if (source->uses_seldom != seldom) {
        source->uses_seldom = seldom;
        mmrt_ring_rewind(source); /* what was read ahead is for a pass of the other kind */
    }
    pthread_mutex_unlock(&source->lock);
}

bool mmrt_source_is_limited(const mmrt_source *source) {
    return source->limited;
}

void mmrt_source_end(mmrt_source *source, bool complete) {
    source->complete = complete;
    pthread_mutex_lock(&source->lock);
    if (!complete)
        mmrt_cache_rest(source);
    source->stats.steps += complete;
    pthread_mutex_unlock(&source->lock);
    pthread_mutex_unlock(&source->pass);
}

void mmrt_source_get_stats(mmrt_source *source, mmrt_stream_stats *stats) {
    mmrt_source_adopt(source);
    pthread_mutex_lock(&source->lock);
    *stats = source->stats;
    const double now = mmrt_seconds();
    if (source->n_waiting)
        stats->stall_seconds += now - source->stalled_since;
    if (source->n_reading)
        stats->busy_seconds += now - source->busy_since;
    stats->kept_bytes = source->kept_bytes + (source->cache.paged ? 0 : source->demand_bytes);
    stats->locked_bytes = source->locked_bytes;
    stats->streamed_bytes = source->total_bytes - source->kept_bytes;
    stats->ring_bytes = (uint64_t)source->wanted_slots * source->slot_bytes;
    stats->reader = source->reader;
    mmrt_cache_stats(source, stats);
    pthread_mutex_unlock(&source->lock);
}
