/* A stream's life: its plan, its readers, its passes. */
#define _GNU_SOURCE
#include "stream/stream.h"

#include "base/owner.h"
#include "base/status.h"
#include "stream/plan.h"
#include "stream/ring.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    RING_BYTES = 64 << 20, /* keeps a fast disk busy: 32 << 20 lost a tenth of 2.4 GB/s */
    LEAST_SLOTS = 4,       /* two in use, two on their way */
    MOST_SLOTS = 64,
    HUGE_PAGE = 2 << 20,
    PAGE_COST = 17,        /* bytes: a page's entries in the page table and in the page cache */
    CLOSE_SECONDS = 2,     /* to wait for a disk that has stalled */
    FAULTS_OF_A_PASS = 32, /* more of them: kept pages were taken away */
    STACK_BYTES = 128 << 10,
};

/* ---- life ---- */

const char *mmrt_reader_name(mmrt_reader reader) {
    static const char *const names[] = {
#define MMRT_READER(id, name, meaning) name,
#include "stream/readers.def"
#undef MMRT_READER
    };
    return names[reader];
}

mmrt_status mmrt_reader_check(mmrt_reader reader, mmrt_mapping *mapping, mmrt_error *err) {
    mmrt_status status = reader == MMRT_READER_URING ? mmrt_uring_check(err) : MMRT_OK;
    if (status || reader == MMRT_READER_MAPPED)
        return status;
    struct mmrt_stream_file file = {.mapping = mapping, .fd = -1};
    status = mmrt_direct_open(&file, err);
    mmrt_direct_close(&file);
    return status;
}

static void close_files(mmrt_stream *stream) {
    for (int32_t i = 0; i < stream->n_files; i++)
        mmrt_direct_close(&stream->files[i]);
}

static void measure_slots(mmrt_stream *stream) {
    uint64_t most = 0;
    for (int32_t i = 0; i < stream->n_units; i++) {
        const struct mmrt_unit *range = &stream->units[i].range;
        const uint64_t align = stream->files[range->file].align;
        const uint64_t slot = (range->bytes + 2 * align + 4095) / 4096 * 4096;
        most = slot > most ? slot : most;
    }
    stream->slot_bytes = most;
}

static void measure_units(mmrt_stream *stream, const struct mmrt_unit *units) {
    for (int32_t i = 0; i < stream->n_units; i++) {
        struct unit *unit = &stream->units[i];
        mmrt_mapping *mapping = stream->files[units[i].file].mapping;
        unit->range = units[i];
        unit->state = UNIT_KEPT;
        unit->at = mmrt_mapped_unit(stream, unit);
        const uint64_t pages = mmrt_mapping_pages(mapping, units[i].offset, units[i].bytes);
        stream->costs[i] = pages * (mmrt_mapping_page_size(mapping) + PAGE_COST);
        stream->total_cost += stream->costs[i];
        stream->total_bytes += units[i].bytes;
    }
    stream->kept_bytes = stream->total_bytes;
    mmrt_plan_order(stream->costs, (size_t)stream->n_units, stream->order);
    measure_slots(stream);
}

static void start_locks(mmrt_stream *stream) {
    pthread_mutex_init(&stream->pass, NULL);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->ready, NULL);
    pthread_cond_init(&stream->reads, NULL);
    pthread_cond_init(&stream->loads, NULL);
}

mmrt_status mmrt_stream_create(mmrt_mapping *const *files, int32_t n_files,
                               const struct mmrt_unit *units, int32_t n_units, mmrt_stream **out,
                               mmrt_error *err) {
    mmrt_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a stream");
    start_locks(stream);
    stream->reader = MMRT_READER_MAPPED; /* it needs nothing */
    mmrt_owner_set(&stream->owner, false);
    stream->files = calloc((size_t)n_files + 1, sizeof *stream->files);
    stream->units = calloc((size_t)n_units + 1, sizeof *stream->units);
    stream->costs = calloc((size_t)n_units + 1, sizeof *stream->costs);
    stream->order = calloc((size_t)n_units + 1, sizeof *stream->order);
    if (!stream->files || !stream->units || !stream->costs || !stream->order) {
        mmrt_stream_free(stream);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan of %d units", n_units);
    }
    stream->n_files = n_files;
    stream->n_units = n_units;
    for (int32_t i = 0; i < n_files; i++)
        stream->files[i] = (struct mmrt_stream_file){.mapping = files[i], .fd = -1, .align = 4096};
    measure_units(stream, units);
    *out = stream;
    return MMRT_OK;
}

/* ---- readers ---- */

/* False where the disk holds one of them up: then they and all they use are left alone. */
static bool stop_readers(mmrt_stream *stream) {
    pthread_mutex_lock(&stream->lock);
    stream->closing = true;
    pthread_cond_broadcast(&stream->reads);
    pthread_cond_broadcast(&stream->loads);
    pthread_mutex_unlock(&stream->lock);
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += CLOSE_SECONDS;
    bool ended = true;
    for (; stream->n_threads; stream->n_threads--) {
        const pthread_t thread = stream->threads[stream->n_threads - 1];
        if (pthread_timedjoin_np(thread, NULL, &deadline) != 0) {
            pthread_detach(thread);
            ended = false;
        }
    }
    stream->closing = !ended;
    return ended;
}

static mmrt_status start_readers(mmrt_stream *stream, mmrt_error *err) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before; /* signals are the callers' */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool uring = stream->reader == MMRT_READER_URING;
    int failed = 0;
    for (int i = uring ? -1 : 0; i < LOADER_THREADS && !failed; i++) {
        void *(*body)(void *) = i < 0   ? mmrt_reader_uring
                                : uring ? mmrt_reader_loading
                                        : mmrt_reader_blocking;
        failed = pthread_create(&stream->threads[stream->n_threads], &attributes, body, stream);
        stream->n_threads += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!failed)
        return MMRT_OK;
    stop_readers(stream);
    return mmrt_fail(err, MMRT_NO_MEMORY, "cannot start a reader thread: %s", strerror(failed));
}

/* ---- the ring ---- */

static void free_ring(mmrt_stream *stream) {
    if (stream->ring)
        munmap(stream->ring, stream->ring_bytes);
    free(stream->slots);
    free(stream->free_slots);
    stream->ring = NULL;
    stream->slots = NULL;
    stream->free_slots = NULL;
    pthread_mutex_lock(&stream->lock); /* statistics look at n_reading */
    stream->n_slots = stream->n_free = stream->first_free = stream->n_reading = 0;
    pthread_mutex_unlock(&stream->lock);
}

static mmrt_status make_slots(mmrt_stream *stream, int32_t n_slots, mmrt_error *err) {
    stream->slots = calloc((size_t)n_slots, sizeof *stream->slots);
    stream->free_slots = calloc((size_t)n_slots, sizeof *stream->free_slots);
    if (!stream->slots || !stream->free_slots)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a ring of %d slots", n_slots);
    for (int32_t i = 0; i < n_slots; i++) {
        stream->slots[i] = (struct slot){.unit = -1, .behind = -1};
        stream->free_slots[i] = i;
    }
    return MMRT_OK;
}

static mmrt_status map_ring(mmrt_stream *stream, int32_t n_slots, mmrt_error *err) {
    const size_t bytes = (size_t)n_slots * stream->slot_bytes, room = bytes + HUGE_PAGE;
    uint8_t *all = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a ring of %zu bytes", bytes);
    const size_t skip = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
    if (skip)
        munmap(all, skip);
    if (HUGE_PAGE - skip)
        munmap(all + skip + bytes, HUGE_PAGE - skip);
    stream->ring = all + skip;
    stream->ring_bytes = bytes;
    madvise(stream->ring, bytes, MADV_HUGEPAGE); /* fewer pages to pin for each read */
    madvise(stream->ring, bytes, MADV_DONTFORK); /* the disk writes to it */
    for (size_t i = 0; i < bytes; i += 4096) /* all of it now, so that it can be accounted for */
        stream->ring[i] = 0;
    return MMRT_OK;
}

/* All of it or nothing: readers go by the number of slots, which comes last. The mapped way has
 * slots too, but their bytes are pages of the file. */
static mmrt_status make_ring(mmrt_stream *stream, int32_t n_slots, mmrt_error *err) {
    mmrt_status status = make_slots(stream, n_slots, err);
    if (!status && stream->reader != MMRT_READER_MAPPED)
        status = map_ring(stream, n_slots, err);
    if (status)
        free_ring(stream);
    else
        stream->n_slots = stream->n_free = n_slots;
    return status;
}

/* In a forked child neither the parent's threads nor the ring nor what was read into it are there,
 * and all else is as the fork found it, amid whatever others did. Only the plan is believed, which
 * units are streamed; the rest is as if it had been set just now. What the ring's tables took is
 * left: they may be freed already. */
static void forget_parent(mmrt_stream *stream) {
    start_locks(stream);
    stream->ring = NULL;
    stream->slots = NULL;
    stream->free_slots = NULL;
    stream->n_slots = stream->n_free = stream->first_free = 0;
    stream->n_threads = stream->n_reading = stream->n_waiting = stream->n_absent = 0;
    stream->cursor = stream->load_cursor = 0;
    stream->failed = stream->interrupted = stream->closing = stream->complete = false;
    stream->kept_bytes = stream->locked_bytes = 0; /* locks are not inherited */
    for (int32_t i = 0; i < stream->n_units; i++) {
        struct unit *unit = &stream->units[i];
        unit->locked = unit->skipped = false;
        unit->at = stream->limited ? NULL : mmrt_mapped_unit(stream, unit);
        unit->state = !stream->limited ? UNIT_KEPT : unit->streamed ? UNIT_AWAY : UNIT_ABSENT;
        stream->n_absent += unit->state == UNIT_ABSENT;
        stream->kept_bytes += unit->streamed ? 0 : unit->range.bytes;
    }
    if (stream->kept_bytes < stream->total_bytes && stream->wanted_slots < LEAST_SLOTS)
        stream->wanted_slots = LEAST_SLOTS;
}

static void own(mmrt_stream *stream) {
    if (mmrt_owner_changes(&stream->owner)) {
        forget_parent(stream);
        mmrt_owner_set(&stream->owner, false);
    }
}

/* Stops the readers and gives the ring back. */
static mmrt_status pause_stream(mmrt_stream *stream, mmrt_error *err) {
    const bool ended = stop_readers(stream);
    stream->complete = false;
    if (!ended)
        return mmrt_fail(err, MMRT_IO, "a read has not ended in %d s: the disk does not answer",
                         CLOSE_SECONDS);
    mmrt_ring_rewind(stream);
    free_ring(stream);
    return MMRT_OK;
}

void mmrt_stream_free(mmrt_stream *stream) {
    if (!stream)
        return;
    own(stream);
    if (pause_stream(stream, NULL) != MMRT_OK)
        return; /* a read may still come: its memory has to stay */
    for (int32_t i = 0; i < stream->n_units; i++)
        mmrt_unlock_unit(stream, i);
    close_files(stream);
    pthread_mutex_destroy(&stream->pass);
    pthread_mutex_destroy(&stream->lock);
    pthread_cond_destroy(&stream->ready);
    pthread_cond_destroy(&stream->reads);
    pthread_cond_destroy(&stream->loads);
    free(stream->files);
    free(stream->units);
    free(stream->costs);
    free(stream->order);
    free(stream);
}

static mmrt_status change_reader(mmrt_stream *stream, mmrt_reader reader, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i < stream->n_files; i++)
        status = mmrt_reader_check(reader, stream->files[i].mapping, err);
    if (!status)
        status = pause_stream(stream, err);
    if (status)
        return status;
    stream->reader = MMRT_READER_MAPPED; /* which uses no descriptors */
    close_files(stream);
    for (int32_t i = 0; !status && i < stream->n_files && reader != MMRT_READER_MAPPED; i++)
        status = mmrt_direct_open(&stream->files[i], err);
    measure_slots(stream);
    if (!status)
        stream->reader = reader;
    return status;
}

mmrt_status mmrt_stream_set_reader(mmrt_stream *stream, mmrt_reader reader, mmrt_error *err) {
    own(stream);
    pthread_mutex_lock(&stream->pass);
    mmrt_status status = reader == stream->reader ? MMRT_OK : change_reader(stream, reader, err);
    pthread_mutex_unlock(&stream->pass);
    return status;
}

/* ---- the plan ---- */

/* Slots of the ring for a budget that does not keep everything. */
static int32_t slots_for(uint64_t slot_bytes, uint64_t budget) {
    uint64_t slots = RING_BYTES / slot_bytes;
    if (slots > budget / 4 / slot_bytes)
        slots = budget / 4 / slot_bytes;
    if (slots > MOST_SLOTS)
        slots = MOST_SLOTS;
    return slots < LEAST_SLOTS ? LEAST_SLOTS : (int32_t)slots;
}

struct choice {
    size_t n_kept;
    int32_t n_slots;
    uint64_t cost;
};

static mmrt_status choose(const mmrt_stream *stream, uint64_t budget, struct choice *out,
                          mmrt_error *err) {
    const size_t n = (size_t)stream->n_units;
    *out = (struct choice){.n_kept = n, .cost = stream->total_cost};
    if (stream->total_cost <= budget)
        return MMRT_OK;
    const uint64_t slot_bytes = stream->slot_bytes;
    out->n_slots = slots_for(slot_bytes, budget);
    const uint64_t ring = (uint64_t)out->n_slots * slot_bytes;
    if (ring > budget)
        return mmrt_fail(err, MMRT_NO_MEMORY,
                         "%llu bytes for weights are too few: the least is %llu",
                         (unsigned long long)budget, (unsigned long long)ring);
    out->n_kept = mmrt_plan_fit(stream->costs, stream->order, n, budget - ring, &out->cost);
    return MMRT_OK;
}

mmrt_status mmrt_stream_plan(const mmrt_stream *stream, uint64_t budget, mmrt_plan *plan,
                             mmrt_error *err) {
    struct choice choice;
    mmrt_status status = choose(stream, budget, &choice, err);
    *plan = (mmrt_plan){
        .total = stream->total_bytes,
        .ring = (uint64_t)choice.n_slots * stream->slot_bytes,
        .least = (uint64_t)LEAST_SLOTS * stream->slot_bytes,
        .most = stream->total_cost,
    };
    for (size_t i = 0; !status && i < choice.n_kept; i++)
        plan->kept += stream->units[stream->order[i]].range.bytes;
    return status;
}

int32_t mmrt_stream_units(const mmrt_stream *stream) {
    return stream->n_units;
}

void mmrt_stream_kept(const mmrt_stream *stream, uint64_t budget, bool *kept) {
    struct choice choice;
    memset(kept, 0, (size_t)stream->n_units * sizeof *kept);
    if (choose(stream, budget, &choice, NULL) == MMRT_OK)
        for (size_t i = 0; i < choice.n_kept; i++)
            kept[stream->order[i]] = true;
}

/* Under the lock. True if the unit's pages are to be dropped. */
static bool change(mmrt_stream *stream, int32_t index, bool streamed) {
    struct unit *unit = &stream->units[index];
    if (unit->streamed == streamed)
        return false;
    unit->streamed = streamed;
    if (!streamed) {
        mmrt_ring_detach(stream, unit);
        unit->state = UNIT_ABSENT;
        stream->n_absent++;
        stream->kept_bytes += unit->range.bytes;
        return false;
    }
    stream->n_absent -= unit->state == UNIT_ABSENT;
    stream->kept_bytes -= unit->range.bytes;
    const bool there = unit->state == UNIT_KEPT;
    mmrt_ring_detach(stream, unit);
    if (index < stream->cursor) /* or it would be read a pass late */
        mmrt_ring_rewind(stream);
    return there;
}

/* The first limit: from now on what is kept is loaded, and not left to faults. */
static void limit(mmrt_stream *stream) {
    for (int32_t i = 0; i < stream->n_units; i++) {
        stream->units[i].state = UNIT_ABSENT;
        atomic_store(&stream->units[i].at, NULL);
    }
    stream->n_absent = stream->n_units;
    stream->limited = true;
}

static mmrt_status apply(mmrt_stream *stream, const struct choice *choice, mmrt_error *err) {
    if (!stream->limited && choice->n_kept == (size_t)stream->n_units)
        return MMRT_OK;
    if (!stream->limited)
        limit(stream);
    if (choice->n_slots != stream->n_slots) {
        mmrt_status status = pause_stream(stream, err);
        if (status)
            return status;
    }
    pthread_mutex_lock(&stream->lock);
    stream->wanted_slots = choice->n_slots;
    pthread_mutex_unlock(&stream->lock);
    for (size_t i = 0; i < (size_t)stream->n_units; i++) {
        const int32_t index = (int32_t)stream->order[i];
        pthread_mutex_lock(&stream->lock);
        const bool drop = change(stream, index, i >= choice->n_kept);
        pthread_mutex_unlock(&stream->lock);
        if (drop)
            mmrt_drop_unit(stream, index);
    }
    pthread_cond_broadcast(&stream->loads);
    pthread_cond_broadcast(&stream->reads);
    return MMRT_OK;
}

mmrt_status mmrt_stream_set_budget(mmrt_stream *stream, uint64_t budget, mmrt_error *err) {
    struct choice choice;
    mmrt_status status = choose(stream, budget, &choice, err);
    if (status)
        return status;
    own(stream);
    pthread_mutex_lock(&stream->pass);
    status = apply(stream, &choice, err);
    pthread_mutex_unlock(&stream->pass);
    return status;
}

void mmrt_stream_lock_kept(mmrt_stream *stream) {
    own(stream);
    pthread_mutex_lock(&stream->pass);
    stream->locks = true;
    if (!stream->limited)
        limit(stream);
    pthread_mutex_unlock(&stream->pass);
}

/* ---- passes ---- */

/* Major faults of this process so far. */
static int64_t major_faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_majflt;
}

/* Units of which the system has taken pages back are to be loaded again: together and ahead of use,
 * not page by page by faults. */
static void look_for_lost(mmrt_stream *stream) {
    for (int32_t i = 0; i < stream->n_units; i++) {
        struct unit *unit = &stream->units[i];
        if (unit->state != UNIT_KEPT)
            continue;
        mmrt_mapping *mapping = stream->files[unit->range.file].mapping;
        const uint64_t n = mmrt_mapping_pages(mapping, unit->range.offset, unit->range.bytes);
        unsigned char *pages = malloc(n);
        bool trusted;
        if (pages &&
            mmrt_mapping_residency(mapping, unit->range.offset, unit->range.bytes, pages, &trusted,
                                   NULL) == MMRT_OK &&
            memchr(pages, 0, n)) {
            unit->state = UNIT_ABSENT;
            atomic_store(&unit->at, NULL);
            stream->n_absent++;
        }
        free(pages);
    }
}

/* Faults bring in single pages from now on, and what the page cache holds of units that are not
 * kept is let go. */
static mmrt_status prepare(mmrt_stream *stream, mmrt_error *err) {
    for (int32_t i = 0; i < stream->n_files; i++) {
        mmrt_mapping *mapping = stream->files[i].mapping;
        mmrt_status status =
            mmrt_mapping_advise(mapping, 0, mmrt_mapping_size(mapping), MMRT_ADVICE_RANDOM, err);
        if (status)
            return status;
    }
    for (int32_t i = 0; i < stream->n_units; i++)
        if (stream->units[i].streamed)
            mmrt_drop_unit(stream, i);
    stream->prepared = true;
    return MMRT_OK;
}

/* Under the pass. */
static mmrt_status make_ready(mmrt_stream *stream, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    if (stream->closing)
        return mmrt_fail(err, MMRT_IO, "the disk has not answered: the model has to be reopened");
    if (stream->limited && !stream->prepared)
        status = prepare(stream, err);
    if (!status && stream->n_slots != stream->wanted_slots)
        status = make_ring(stream, stream->wanted_slots, err);
    pthread_mutex_lock(&stream->lock);
    const uint64_t loaded = stream->stats.loaded_bytes;
    if (stream->limited && stream->loaded_before == loaded &&
        major_faults() - stream->faults > FAULTS_OF_A_PASS)
        look_for_lost(stream);
    stream->loaded_before = loaded;
    stream->faults = major_faults();
    if (!stream->complete || stream->failed) /* a read ahead of this pass may be what failed */
        mmrt_ring_rewind(stream);
    stream->failed = stream->interrupted = stream->complete = false;
    const bool work = stream->n_slots || stream->n_absent;
    pthread_cond_broadcast(&stream->reads);
    pthread_cond_broadcast(&stream->loads);
    pthread_mutex_unlock(&stream->lock);
    return status || !work || stream->n_threads ? status : start_readers(stream, err);
}

mmrt_status mmrt_stream_begin(mmrt_stream *stream, mmrt_error *err) {
    own(stream);
    pthread_mutex_lock(&stream->pass);
    mmrt_status status = make_ready(stream, err);
    if (status)
        pthread_mutex_unlock(&stream->pass);
    return status;
}

bool mmrt_stream_is_limited(const mmrt_stream *stream) {
    return stream->limited;
}

void mmrt_stream_end(mmrt_stream *stream, bool complete) {
    stream->complete = complete;
    pthread_mutex_lock(&stream->lock);
    stream->stats.steps += complete;
    pthread_mutex_unlock(&stream->lock);
    pthread_mutex_unlock(&stream->pass);
}

void mmrt_stream_get_stats(mmrt_stream *stream, mmrt_stream_stats *stats) {
    own(stream);
    pthread_mutex_lock(&stream->lock);
    *stats = stream->stats;
    const double now = mmrt_seconds();
    if (stream->n_waiting)
        stats->stall_seconds += now - stream->stalled_since;
    if (stream->n_reading)
        stats->busy_seconds += now - stream->busy_since;
    stats->kept_bytes = stream->kept_bytes;
    stats->locked_bytes = stream->locked_bytes;
    stats->streamed_bytes = stream->total_bytes - stream->kept_bytes;
    stats->ring_bytes = (uint64_t)stream->wanted_slots * stream->slot_bytes;
    stats->reader = stream->reader;
    pthread_mutex_unlock(&stream->lock);
}
