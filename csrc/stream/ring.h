/* What the parts of a stream share: units and their states, slots, and the jobs of readers. */
#ifndef MMRT_STREAM_RING_H
#define MMRT_STREAM_RING_H

#include "stream/direct.h"
#include "stream/stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

enum unit_state {
    UNIT_AWAY,    /* streamed, and to be read yet */
    UNIT_READING, /* into its slot */
    UNIT_READY,   /* in its slot */
    UNIT_ABSENT,  /* to be kept, and to be loaded yet */
    UNIT_LOADING, /* onto its mapped pages */
    UNIT_KEPT,    /* on its mapped pages */
};

struct unit {
    struct mmrt_unit range;
    const uint8_t *_Atomic at;  /* NULL unless READY or KEPT */
    _Atomic uint32_t rows_left; /* READY: rows that this pass has still to multiply */
    int32_t slot;               /* READING, READY */
    uint8_t state;
    bool streamed; /* changes between passes only */
    bool skipped;  /* AWAY: this pass does without it */
    _Atomic bool locked;
};

struct slot {
    int32_t unit;   /* -1: none, or its unit is no longer wanted */
    int32_t behind; /* mapped: the unit whose pages are to be dropped before the next one; or -1 */
};

enum { LOADER_THREADS = 4 };

struct mmrt_stream {
    struct mmrt_stream_file *files;
    struct unit *units;
    uint64_t *costs; /* bytes of memory that keeping each unit takes */
    uint32_t *order; /* in which units are kept */
    int32_t n_files, n_units, n_kept;
    uint64_t total_bytes, total_cost;
    _Atomic uint64_t slot_bytes; /* as `reader` below */
    _Atomic mmrt_reader reader;  /* changes under `pass`, while there are no threads */

    pthread_mutex_t pass; /* held by whoever runs a pass or changes the plan */
    atomic_int owner;     /* the process whose readers these are */
    bool limited;         /* a budget does not hold, or once did not hold, all units */
    bool prepared;        /* the mapping is advised, the page cache holds no streamed unit */
    _Atomic bool locks;   /* kept units, as far as the process may */
    bool complete;        /* the pass before used everything: the ring holds the next one's units */
    int64_t faults;       /* major ones of this process, before the pass */
    uint64_t loaded_before;

    pthread_mutex_t lock; /* of all that follows, but for the ring while there are no threads */
    pthread_cond_t ready; /* for users: a unit is there, or nothing more will come */
    pthread_cond_t reads; /* for readers: a slot is free */
    pthread_cond_t loads; /* for threads that only load */
    uint8_t *ring;
    size_t ring_bytes;
    int32_t wanted_slots; /* of the ring, which is made when a pass needs it */
    uint64_t kept_bytes;
    _Atomic uint64_t locked_bytes;
    struct slot *slots;
    int32_t *free_slots;
    int32_t n_slots, first_free, n_free, n_reading, n_absent, n_waiting;
    int32_t cursor; /* the unit to read next, unless it is kept */
    int32_t load_cursor;
    bool failed;      /* as `error` says */
    bool interrupted; /* by the caller's poll */
    bool closing;
    mmrt_error error;
    pthread_t threads[1 + LOADER_THREADS];
    int n_threads;
    double busy_since;    /* while n_reading > 0 */
    double stalled_since; /* while n_waiting > 0 */
    mmrt_stream_stats stats;
};

/* ---- for readers ---- */

enum { MMRT_JOB_READ = 1, MMRT_JOB_LOAD = 2 };

struct mmrt_job {
    int kind;
    int32_t unit;
    int32_t slot;                        /* READ */
    int32_t behind;                      /* READ of mapped pages: the unit to drop first; or -1 */
    const struct mmrt_stream_file *file; /* READ into a slot: */
    struct mmrt_span span;
    uint8_t *to;
};

/* The next job of one of these kinds. False: there is none now (with `wait`: the stream closes). */
bool mmrt_ring_take(mmrt_stream *stream, int kinds, bool wait, struct mmrt_job *job);

/* The job is done; or it has failed, as `error` says. */
void mmrt_ring_complete(mmrt_stream *stream, const struct mmrt_job *job, const mmrt_error *error);

/* A failure that is no single job's: the pass ends with it. */
void mmrt_ring_fail(mmrt_stream *stream, const mmrt_error *error);

/* The bodies of threads: one that reads by io_uring, one that works off jobs of some kinds one by
 * one. They return when the stream closes. */
void *mmrt_reader_uring(void *stream);
void *mmrt_reader_blocking(void *stream);
void *mmrt_reader_loading(void *stream);

/* UNSUPPORTED, and why, if io_uring cannot be had here. */
mmrt_status mmrt_uring_check(mmrt_error *err);

/* ---- units on the pages of their mapped files ---- */

/* Where a unit lies in its file's mapping. */
const uint8_t *mmrt_mapped_unit(const mmrt_stream *stream, const struct unit *unit);

/* Work of a LOAD job, and of a READ job of the mapped way. */
mmrt_status mmrt_load_unit(mmrt_stream *stream, const struct mmrt_job *job, mmrt_error *err);

/* Locks a unit's pages, if this process may: else they stay as others do. */
void mmrt_lock_unit(mmrt_stream *stream, int32_t unit);

/* Unlocks a unit's pages, if they are locked. */
void mmrt_unlock_unit(mmrt_stream *stream, int32_t unit);

/* Drops a unit's pages from memory, as far as nothing else uses them. */
void mmrt_drop_unit(mmrt_stream *stream, int32_t unit);

/* ---- for the stream; both under its lock ---- */

/* Forgets what is in the ring: reading starts again with unit 0. */
void mmrt_ring_rewind(mmrt_stream *stream);

/* Takes a unit's slot away from it, whatever state it is in. */
void mmrt_ring_detach(mmrt_stream *stream, struct unit *unit);

double mmrt_seconds(void);

#endif
