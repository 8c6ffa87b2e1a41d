/* What the parts of a source share: units and their states, slots, and the jobs of readers. */
#ifndef MMRT_SOURCE_INSIDE_H
#define MMRT_SOURCE_INSIDE_H

#include "source/direct.h"
#include "source/source.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

enum unit_state {
    UNIT_AWAY,    /* streamed, and to be read yet */
    UNIT_WANTED,  /* on demand, and to be read as soon as there is a slot */
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
    int32_t slot;               /* READING, READY; of a unit on demand: -1 if it is its item's */
    int32_t item;               /* on demand: whose part it is */
    uint8_t state;
    bool streamed; /* changes between passes only */
    bool skipped;  /* AWAY: this pass does without it */
    bool seldom;   /* some passes do without it, as they say when they begin */
    _Atomic bool locked;
};

struct slot {
    int32_t unit;   /* -1: none, or its unit is no longer wanted */
    int32_t behind; /* mapped: the unit whose pages are to be dropped before the next one; or -1 */
};

struct bank {
    struct mmrt_bank shape;
    int32_t first_unit, first_item, slab;
    mmrt_demand_stats stats;
};

struct item {
    double fast, slow, score; /* see score.c */
    uint64_t wanted, recent;  /* when it was last, by the cache's clock; recent: by a last token */
    int32_t bank;
    int32_t slot; /* -1: none */
};

/* Slots of one size, each for the parts of an item. Memory is reserved for all items that fit them,
 * and taken as far as slots are used. */
struct slab {
    uint64_t slot_bytes;
    int32_t n_items; /* in banks whose items have slots of this size */
    int32_t n_slots; /* by the plan */
    int32_t room;    /* slots that the memory has room for */
    uint8_t *memory; /* mapped: NULL, as for the ring */
    size_t bytes;
    int32_t *items;  /* [n_items]: of each slot; -1: none */
    double *scores;  /* [n_items]: of these items; below any other: none */
    int32_t *behind; /* [n_items], mapped: the item whose pages are to be dropped first; or -1 */
};

/* Slots for units of items that do not stay. */
struct passing {
    _Atomic uint64_t slot_bytes;
    int32_t n_slots, n_free;
    int32_t *free_slots; /* a stack */
    struct slot *slots;
    uint8_t *memory;
    size_t bytes;
};

/* The units that are used on demand, which come after those that are used in order. */
struct cache {
    int32_t first; /* the number of the first unit on demand */
    struct bank *banks;
    struct item *items;
    struct slab *slabs; /* [at most n_banks] */
    int32_t n_banks, n_items, n_slabs;
    struct passing passing;
    mmrt_policy policy;
    bool paged;     /* by the plan: else all are kept on their mapped pages */
    uint64_t bytes; /* by the plan: for slots of items */
    bool made;      /* there are slots */
    int32_t *queue; /* wanted and still to be read, in turn; -1: read since */
    int32_t head, n_queued;
    int32_t n_reading;
    uint32_t *missing; /* for mmrt_source_want */
    uint64_t clock;
};

enum {
    LOADER_THREADS = 4,
    MMRT_LEAST_SLOTS = 4,     /* of the ring: two in use, two on their way */
    MMRT_PAGE_COST = 17,      /* bytes: a page's entries in the page table and in the page cache */
    MMRT_HUGE_PAGE = 2 << 20, /* bytes */
};

struct mmrt_source {
    struct mmrt_source_file *files;
    struct unit *units;
    uint64_t *costs; /* bytes of memory that keeping each unit takes */
    uint32_t *order; /* in which units that are used in order are kept */
    int32_t n_files, n_units;
    uint64_t total_bytes, total_cost;   /* of units in order */
    uint64_t demand_bytes, demand_cost; /* of units on demand */
    _Atomic uint64_t slot_bytes;        /* as `reader` below */
    _Atomic mmrt_reader reader;         /* changes under `pass`, while there are no threads */

    pthread_mutex_t pass; /* held by whoever runs a pass or changes the plan */
    atomic_int owner;     /* the process whose readers these are */
    bool limited;         /* a budget does not hold, or once did not hold, all units */
    bool prepared;        /* the mapping is advised, the page cache holds no streamed unit */
    _Atomic bool locks;   /* kept units, as far as the process may */
    bool uses_seldom;     /* this pass, and read ahead: the next one */
    bool complete;        /* the pass before used everything: the ring holds the next one's units */
    int64_t faults;       /* major ones of this process, before the pass */
    uint64_t loaded_before;

    pthread_mutex_t lock; /* of all that follows, but for slots while there are no threads */
    pthread_cond_t ready; /* for users: a unit is there, or nothing more will come */
    pthread_cond_t reads; /* for readers: a slot is free, or a unit is wanted */
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
    struct cache cache;
    bool failed;      /* as `error` says */
    bool interrupted; /* by the caller's poll */
    bool closing;
    mmrt_error error;
    int32_t failed_unit; /* -1: no unit's */
    pthread_t threads[1 + LOADER_THREADS];
    int n_threads;
    double busy_since;    /* while n_reading > 0 */
    double stalled_since; /* while n_waiting > 0 */
    mmrt_stream_stats stats;
};

static inline bool is_on_demand(const mmrt_source *source, int32_t unit) {
    return unit >= source->cache.first;
}

/* The number of a part of an item. */
static inline int32_t mmrt_part_unit(const mmrt_source *source, int32_t item, int32_t part) {
    const struct bank *bank = &source->cache.banks[source->cache.items[item].bank];
    return bank->first_unit + (item - bank->first_item) * bank->shape.n_parts + part;
}

/* ---- for readers ---- */

enum { MMRT_JOB_READ = 1, MMRT_JOB_LOAD = 2 };

struct mmrt_job {
    int kind;
    int32_t unit;
    int32_t slot;                        /* READ */
    int32_t behind;                      /* READ of mapped pages: the unit to drop first; or -1 */
    const struct mmrt_source_file *file; /* READ into a slot: */
    struct mmrt_span span;
    uint8_t *to;
};

/* The next job of one of these kinds. False: there is none now (with `wait`: the source closes). */
bool mmrt_job_take(mmrt_source *source, int kinds, bool wait, struct mmrt_job *job);

/* The job is done; or it has failed, as `error` says. */
void mmrt_job_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error);

/* A failure that is no single job's: the pass ends with it. */
void mmrt_source_break_off(mmrt_source *source, const mmrt_error *error);

/* The bodies of threads: one that reads by io_uring, one that works off jobs of some kinds one by
 * one. They return when the source closes. */
void *mmrt_reader_uring(void *source);
void *mmrt_reader_blocking(void *source);
void *mmrt_reader_loading(void *source);

/* UNSUPPORTED, and why, if io_uring cannot be had here. */
mmrt_status mmrt_uring_check(mmrt_error *err);

/* ---- units on the pages of their mapped files ---- */

/* Where a unit lies in its file's mapping. */
const uint8_t *mmrt_mapped_unit(const mmrt_source *source, const struct unit *unit);

/* Work of a LOAD job, and of a READ job of the mapped way. */
mmrt_status mmrt_load_unit(mmrt_source *source, const struct mmrt_job *job, mmrt_error *err);

/* Locks a unit's pages, if this process may: else they stay as others do. */
void mmrt_lock_unit(mmrt_source *source, int32_t unit);

/* Unlocks a unit's pages, if they are locked. */
void mmrt_unlock_unit(mmrt_source *source, int32_t unit);

/* Drops a unit's pages from memory, as far as nothing else uses them. */
void mmrt_drop_unit(mmrt_source *source, int32_t unit);

/* ---- slots ---- */

/* Memory for slots, in huge pages where the system has them, and not inherited by forks. */
mmrt_status mmrt_slots_map(size_t bytes, uint8_t **out, mmrt_error *err);

/* The same, not taken before it is used; huge: in such pages, if there are any. */
mmrt_status mmrt_slots_reserve(size_t bytes, bool huge, uint8_t **out, mmrt_error *err);

/* Makes and frees what a policy's slots take, while no reader runs. All of it or nothing. The
 * mapped way has slots too, but their bytes are pages of the file. */
mmrt_status mmrt_ring_make(mmrt_source *source, int32_t n_slots, mmrt_error *err);
void mmrt_ring_free(mmrt_source *source);
mmrt_status mmrt_cache_make(mmrt_source *source, mmrt_error *err);
void mmrt_cache_free(mmrt_source *source);

/* ---- the cache's slots: cache.c ---- */

/* Copies the banks, and makes the tables of a cache. */
mmrt_status mmrt_cache_create(mmrt_source *source, const struct mmrt_bank *banks, int32_t n_banks,
                              mmrt_error *err);
void mmrt_cache_destroy(mmrt_source *source);

/* Finds how large slots have to be, which depends on the reader; there are none now. */
void mmrt_cache_measure(mmrt_source *source);

/* In a child that was forked: there are no slots. */
void mmrt_cache_forget(mmrt_source *source);

/* How many slots of a slab `bytes` for all slots allow. */
int32_t mmrt_cache_share(const mmrt_source *source, const struct slab *slab, uint64_t bytes);

/* What so many slots take, and the slots for what passes. */
uint64_t mmrt_slab_bytes(const struct slab *slab, int32_t n_slots);
uint64_t mmrt_passing_bytes(const mmrt_source *source);

/* Gives each slab its share of `bytes`. What no longer fits is forgotten, the lowest scores first,
 * and its memory given back. Between passes, while nothing is read into the cache. */
void mmrt_cache_resize(mmrt_source *source, uint64_t bytes);

/* Takes an item's slot away from it. */
void mmrt_item_evict(mmrt_source *source, struct item *item);

/* Where it lies in its item's slot. */
uint64_t mmrt_part_offset(const mmrt_source *source, int32_t item, int32_t part);

/* ---- which items stay: score.c; under the source's lock ---- */

/* Counts that these tokens, in turn, have chosen these items. */
void mmrt_score_count(mmrt_source *source, const struct mmrt_want *want);

/* The slot that is free, or that has the lowest score of those that are not in use; -1: none. */
int32_t mmrt_score_victim(const mmrt_source *source, const struct slab *slab);

/* Notes in the slab that the item is in a slot, or that the slot is free (-1). */
void mmrt_score_place(mmrt_source *source, struct slab *slab, int32_t slot, int32_t item);

/* ---- the two policies; under the source's lock ---- */

/* The next unit to read, and a slot for it. False: there is none now. */
bool mmrt_ring_next(mmrt_source *source, struct mmrt_job *job);
bool mmrt_cache_next(mmrt_source *source, struct mmrt_job *job);

/* The unit has been read; or not, as `error` says. */
void mmrt_ring_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error);
void mmrt_cache_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error);

/* Forgets what is in the ring: reading starts again with unit 0. */
void mmrt_ring_rewind(mmrt_source *source);

/* Takes a unit's slot away from it, whatever state it is in. */
void mmrt_ring_detach(mmrt_source *source, struct unit *unit);

/* Nothing is wanted any more; items that stay do so. */
void mmrt_cache_rest(mmrt_source *source);

/* A unit that passes has been used. */
void mmrt_unit_passed(mmrt_source *source, struct unit *unit);

/* Adds what the cache takes and has done. */
void mmrt_cache_stats(const mmrt_source *source, mmrt_stream_stats *stats);

/* The job of reading `unit` into this memory; a read is now on its way. */
struct mmrt_job mmrt_read_job(mmrt_source *source, int32_t unit, int32_t slot, int32_t behind,
                              uint8_t *to);

/* A read has ended, well unless there is an error. */
void mmrt_count_read(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error);

/* The unit can be used from now on; `to` is where it was read to. */
void mmrt_unit_arrives(mmrt_source *source, const struct mmrt_job *job);

/* The pass fails, for the first reason given. unit: whose read failed; or -1. */
void mmrt_source_fail(mmrt_source *source, int32_t unit, const mmrt_error *error);

/* ---- a source's life ---- */

/* In a child that was forked: makes the source its own. */
void mmrt_source_adopt(mmrt_source *source);

/* Starts the readers, or stops them; false where the disk holds one of them up: then they and all
 * they use are left alone. */
mmrt_status mmrt_readers_start(mmrt_source *source, mmrt_error *err);
bool mmrt_readers_stop(mmrt_source *source);

/* Waits for threads that have been told to end; false if one does not within two seconds, as where
 * a disk has stalled. *n becomes 0. */
bool mmrt_threads_end(const pthread_t *threads, int *n);

/* Stops the readers and gives the ring back. */
mmrt_status mmrt_source_pause(mmrt_source *source, mmrt_error *err);

double mmrt_seconds(void);

#endif
