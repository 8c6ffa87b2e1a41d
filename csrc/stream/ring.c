/* Units on their way: which job a reader does next, who waits for what. */
#define _GNU_SOURCE
#include "stream/ring.h"

#include "base/status.h"

#include <math.h>
#include <time.h>

double mmrt_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Slots are used in turn, so that mapped pages are dropped well before they are needed again. */
static void free_slot(mmrt_stream *stream, int32_t slot) {
    stream->free_slots[(stream->first_free + stream->n_free++) % stream->n_slots] = slot;
    pthread_cond_signal(&stream->reads);
}

static int32_t take_slot(mmrt_stream *stream) {
    const int32_t slot = stream->free_slots[stream->first_free];
    stream->first_free = (stream->first_free + 1) % stream->n_slots;
    stream->n_free--;
    return slot;
}

/* ---- jobs ---- */

static bool next_read(mmrt_stream *stream, struct mmrt_job *job) {
    if (!stream->n_free || stream->failed)
        return false;
    struct unit *unit = NULL;
    for (int32_t looked = 0; !unit && looked < stream->n_units; looked++) {
        struct unit *next = &stream->units[stream->cursor];
        if (next->state == UNIT_READING || next->state == UNIT_READY)
            return false; /* a whole pass ahead */
        if (next->state == UNIT_AWAY && !next->skipped) {
            unit = next;
        } else {
            next->skipped = false;
            stream->cursor = (stream->cursor + 1) % stream->n_units;
        }
    }
    if (!unit)
        return false;
    const int32_t slot = take_slot(stream);
    *job = (struct mmrt_job){
        .kind = MMRT_JOB_READ,
        .unit = stream->cursor,
        .slot = slot,
        .behind = stream->slots[slot].behind,
        .file = &stream->files[unit->range.file],
        .to = stream->ring + (size_t)slot * stream->slot_bytes,
    };
    if (stream->reader != MMRT_READER_MAPPED)
        job->span = mmrt_direct_span(job->file, unit->range.offset, unit->range.bytes);
    stream->slots[slot] = (struct slot){.unit = stream->cursor, .behind = -1};
    unit->slot = slot;
    unit->state = UNIT_READING;
    if (!stream->n_reading++)
        stream->busy_since = mmrt_seconds();
    stream->cursor = (stream->cursor + 1) % stream->n_units;
    return true;
}

static bool next_load(mmrt_stream *stream, struct mmrt_job *job) {
    if (stream->failed)
        return false;
    for (int32_t looked = 0; stream->n_absent && looked < stream->n_units; looked++) {
        const int32_t index = stream->load_cursor;
        struct unit *unit = &stream->units[index];
        stream->load_cursor = (index + 1) % stream->n_units;
        if (unit->state != UNIT_ABSENT)
            continue;
        unit->state = UNIT_LOADING;
        stream->n_absent--;
        *job = (struct mmrt_job){.kind = MMRT_JOB_LOAD, .unit = index, .slot = -1, .behind = -1};
        return true;
    }
    return false;
}

bool mmrt_ring_take(mmrt_stream *stream, int kinds, bool wait, struct mmrt_job *job) {
    bool found = false;
    pthread_mutex_lock(&stream->lock);
    while (!stream->closing) {
        found = ((kinds & MMRT_JOB_READ) && next_read(stream, job)) ||
                ((kinds & MMRT_JOB_LOAD) && next_load(stream, job));
        if (found || !wait)
            break;
        pthread_cond_wait(kinds & MMRT_JOB_READ ? &stream->reads : &stream->loads, &stream->lock);
    }
    pthread_mutex_unlock(&stream->lock);
    return found;
}

static void fail(mmrt_stream *stream, const mmrt_error *error) {
    if (!stream->failed)
        stream->error = *error;
    stream->failed = true;
}

static void complete_read(mmrt_stream *stream, const struct mmrt_job *job,
                          const mmrt_error *error) {
    struct slot *slot = &stream->slots[job->slot];
    if (!--stream->n_reading)
        stream->stats.busy_seconds += mmrt_seconds() - stream->busy_since;
    const bool is_mapped = stream->reader == MMRT_READER_MAPPED;
    if (!error)
        stream->stats.read_bytes +=
            is_mapped ? stream->units[job->unit].range.bytes : job->span.need;
    if (is_mapped)
        slot->behind = job->unit;
    if (slot->unit < 0) { /* detached meanwhile */
        free_slot(stream, job->slot);
        return;
    }
    struct unit *unit = &stream->units[job->unit];
    if (error) {
        mmrt_ring_detach(stream, unit);
        free_slot(stream, job->slot);
        fail(stream, error);
        return;
    }
    unit->state = UNIT_READY;
    atomic_store_explicit(&unit->rows_left, unit->range.rows, memory_order_relaxed);
    atomic_store_explicit(&unit->at,
                          is_mapped ? mmrt_mapped_unit(stream, unit)
                                    : job->to + (unit->range.offset - job->span.start),
                          memory_order_release);
}

/* Whether the unit's pages are to stay. */
static bool complete_load(mmrt_stream *stream, const struct mmrt_job *job,
                          const mmrt_error *error) {
    struct unit *unit = &stream->units[job->unit];
    if (unit->state != UNIT_LOADING) /* the plan has changed */
        return !unit->streamed;
    if (error) {
        unit->state = UNIT_ABSENT;
        stream->n_absent++;
        fail(stream, error);
        return true;
    }
    unit->state = UNIT_KEPT;
    stream->stats.loaded_bytes += unit->range.bytes;
    atomic_store_explicit(&unit->at, mmrt_mapped_unit(stream, unit), memory_order_release);
    return true;
}

void mmrt_ring_fail(mmrt_stream *stream, const mmrt_error *error) {
    pthread_mutex_lock(&stream->lock);
    fail(stream, error);
    pthread_cond_broadcast(&stream->ready);
    pthread_mutex_unlock(&stream->lock);
}

void mmrt_ring_complete(mmrt_stream *stream, const struct mmrt_job *job, const mmrt_error *error) {
    bool stays = true;
    pthread_mutex_lock(&stream->lock);
    if (job->kind == MMRT_JOB_READ)
        complete_read(stream, job, error);
    else
        stays = complete_load(stream, job, error);
    pthread_cond_broadcast(&stream->ready);
    pthread_mutex_unlock(&stream->lock);
    if (!stays)
        mmrt_drop_unit(stream, job->unit);
}

/* ---- the stream's side ---- */

void mmrt_ring_detach(mmrt_stream *stream, struct unit *unit) {
    const bool reading = unit->state == UNIT_READING, ready = unit->state == UNIT_READY;
    atomic_store_explicit(&unit->at, NULL, memory_order_relaxed);
    unit->state = UNIT_AWAY;
    unit->skipped = false;
    if (!reading && !ready)
        return;
    struct slot *slot = &stream->slots[unit->slot];
    slot->unit = -1;
    if (ready)
        free_slot(stream, unit->slot);
}

void mmrt_ring_rewind(mmrt_stream *stream) {
    for (int32_t i = 0; i < stream->n_slots; i++)
        if (stream->slots[i].unit >= 0)
            mmrt_ring_detach(stream, &stream->units[stream->slots[i].unit]);
    for (int32_t i = 0; i < stream->n_units; i++)
        stream->units[i].skipped = false;
    stream->cursor = 0;
    pthread_cond_broadcast(&stream->reads);
}

/* ---- users ---- */

bool mmrt_stream_is_kept(const mmrt_stream *stream, int32_t first, int32_t end) {
    for (int32_t i = first; i < end; i++)
        if (stream->units[i].streamed || !atomic_load(&stream->units[i].at))
            return false;
    return true;
}

/* False when the time is over. */
static bool wait_for_readers(mmrt_stream *stream, const struct timespec *deadline) {
    if (!deadline)
        return pthread_cond_wait(&stream->ready, &stream->lock) == 0;
    return pthread_cond_timedwait(&stream->ready, &stream->lock, deadline) == 0;
}

const uint8_t *mmrt_stream_acquire(mmrt_stream *stream, int32_t index, double seconds,
                                   bool *ended) {
    struct unit *unit = &stream->units[index];
    const uint8_t *at = atomic_load_explicit(&unit->at, memory_order_acquire);
    *ended = false;
    if (at)
        return at;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline); /* what a condition's time is counted in */
    const double nanoseconds = (double)deadline.tv_nsec + (seconds < 0 ? 0 : seconds) * 1e9;
    deadline.tv_sec += (time_t)(nanoseconds / 1e9);
    deadline.tv_nsec = (long)fmod(nanoseconds, 1e9);
    pthread_mutex_lock(&stream->lock);
    if (!stream->n_waiting++)
        stream->stalled_since = mmrt_seconds();
    do {
        at = atomic_load_explicit(&unit->at, memory_order_acquire);
        *ended = stream->failed || stream->interrupted;
    } while (!at && !*ended && wait_for_readers(stream, seconds < 0 ? NULL : &deadline));
    if (!--stream->n_waiting)
        stream->stats.stall_seconds += mmrt_seconds() - stream->stalled_since;
    pthread_mutex_unlock(&stream->lock);
    return at;
}

void mmrt_stream_release(mmrt_stream *stream, int32_t index, uint32_t rows) {
    struct unit *unit = &stream->units[index];
    if (!unit->streamed ||
        atomic_fetch_sub_explicit(&unit->rows_left, rows, memory_order_acq_rel) != rows)
        return;
    pthread_mutex_lock(&stream->lock);
    mmrt_ring_detach(stream, unit);
    pthread_mutex_unlock(&stream->lock);
}

void mmrt_stream_skip(mmrt_stream *stream, int32_t first, int32_t end) {
    pthread_mutex_lock(&stream->lock);
    for (int32_t i = first; i < end; i++) {
        struct unit *unit = &stream->units[i];
        if (unit->state == UNIT_READING || unit->state == UNIT_READY)
            mmrt_ring_detach(stream, unit);
        else
            unit->skipped = unit->state == UNIT_AWAY;
    }
    pthread_cond_broadcast(&stream->reads);
    pthread_mutex_unlock(&stream->lock);
}

void mmrt_stream_interrupt(mmrt_stream *stream) {
    pthread_mutex_lock(&stream->lock);
    stream->interrupted = true;
    pthread_cond_broadcast(&stream->ready);
    pthread_mutex_unlock(&stream->lock);
}

mmrt_status mmrt_stream_error(mmrt_stream *stream, mmrt_error *err) {
    pthread_mutex_lock(&stream->lock);
    const mmrt_error error = stream->error;
    pthread_mutex_unlock(&stream->lock);
    if (err)
        *err = error;
    return error.status;
}
