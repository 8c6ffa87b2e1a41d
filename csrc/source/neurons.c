#define _GNU_SOURCE
#include "source/neurons.h"

#include "base/owner.h"
#include "base/status.h"
#include "source/inside.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    READERS = 32,
    STACK_BYTES = 64 << 10,
    SHARE = 8, /* of a budget, one part */
};

enum row_state { ROW_FREE, ROW_READING, ROW_READY };

struct row_slot {
    int32_t row;           /* counted through all tables; -1: none */
    int32_t before, after; /* in the order of use, the latest first, which is a ring */
    uint8_t state;
};

struct mmrt_neurons {
    struct mmrt_source_file *files;
    struct mmrt_neurons_table *tables;
    int32_t *first_rows; /* [n_tables + 1]: of each table, counted through */
    int32_t n_files, n_tables;
    mmrt_reader reader;
    _Atomic mmrt_reader wanted; /* the reader that is to be */
    _Atomic uint64_t slot_bytes;
    _Atomic uint64_t room; /* bytes that there are to be */
    atomic_int owner;      /* the process whose readers these are */

    pthread_mutex_t lock;   /* of all that follows */
    pthread_cond_t ready;   /* for users: a row is there, or will not come */
    pthread_cond_t reads;   /* for readers */
    int32_t *slot_of;       /* [rows of all tables]; -1: none */
    struct row_slot *slots; /* [n_slots + 1]: the last is where the ring begins */
    int32_t *queue;         /* [n_slots]: a ring of slots to be read into */
    int32_t n_slots, head, n_queued, n_reading;
    uint8_t *memory;
    size_t bytes;
    int32_t turn;
    bool failed, closing;
    int32_t failed_row;
    mmrt_error error;
    pthread_t threads[READERS];
    int n_threads;
    double stalled_since; /* while n_waiting > 0 */
    int n_waiting;
    mmrt_demand_stats stats;
};

/* ---- life ---- */

static void start_locks(mmrt_neurons *n) {
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->ready, NULL);
    pthread_cond_init(&n->reads, NULL);
}

/* A row and what aligned reads bring beside it, unless rows are aligned themselves. */
static void measure(mmrt_neurons *n) {
    uint64_t most = 0;
    for (int32_t i = 0; i < n->n_tables; i++) {
        const struct mmrt_neurons_table *t = &n->tables[i];
        const uint64_t align = n->files[t->file].align;
        const bool aligned = t->offset % align == 0 && t->stride % align == 0;
        const uint64_t bytes = aligned ? t->row_bytes : t->row_bytes + 2 * align;
        most = bytes > most ? bytes : most;
    }
    n->slot_bytes = (most + 4095) / 4096 * 4096;
}

mmrt_status mmrt_neurons_create(mmrt_mapping *const *files, int32_t n_files,
                                const struct mmrt_neurons_table *tables, int32_t n_tables,
                                mmrt_neurons **out, mmrt_error *err) {
    mmrt_neurons *n = calloc(1, sizeof *n);
    if (!n)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    start_locks(n);
    mmrt_owner_set(&n->owner, false);
    n->reader = MMRT_READER_MAPPED;
    n->wanted = MMRT_READER_MAPPED;
    n->n_files = n_files;
    n->n_tables = n_tables;
    uint64_t rows = 0;
    for (int32_t i = 0; i < n_tables; i++)
        rows += tables[i].rows;
    n->files = calloc((size_t)n_files + 1, sizeof *n->files);
    n->tables = calloc((size_t)n_tables + 1, sizeof *n->tables);
    n->first_rows = calloc((size_t)n_tables + 1, sizeof *n->first_rows);
    n->slot_of = rows < INT32_MAX ? malloc((rows + 1) * sizeof *n->slot_of) : NULL;
    if (!n->files || !n->tables || !n->first_rows || !n->slot_of) {
        mmrt_neurons_free(n);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan of %llu rows",
                         (unsigned long long)rows);
    }
    for (int32_t i = 0; i < n_files; i++)
        n->files[i] = (struct mmrt_source_file){.mapping = files[i], .fd = -1, .align = 4096};
    for (int32_t i = 0; i < n_tables; i++) {
        n->tables[i] = tables[i];
        n->first_rows[i + 1] = n->first_rows[i] + (int32_t)tables[i].rows;
    }
    for (uint64_t i = 0; i < rows; i++)
        n->slot_of[i] = -1;
    measure(n);
    *out = n;
    return MMRT_OK;
}

/* False: the disk holds a reader up, who has to be left alone with all it uses. */
static bool stop_readers(mmrt_neurons *n) {
    pthread_mutex_lock(&n->lock);
    const bool left_before = n->closing;
    n->closing = true;
    pthread_cond_broadcast(&n->reads);
    pthread_mutex_unlock(&n->lock);
    const bool ended = mmrt_threads_end(n->threads, &n->n_threads) && !left_before;
    n->closing = !ended;
    return ended;
}

/* While no reader runs. */
static void free_slots(mmrt_neurons *n) {
    for (int32_t i = 0; i < n->n_slots; i++)
        if (n->slots[i].row >= 0)
            n->slot_of[n->slots[i].row] = -1;
    if (n->memory)
        munmap(n->memory, n->bytes);
    free(n->slots);
    free(n->queue);
    n->memory = NULL;
    n->slots = NULL;
    n->queue = NULL;
    n->n_slots = n->head = n->n_queued = n->n_reading = 0;
}

/* A forked child has neither readers nor slots; their tables are not freed, as the fork may have
 * come amid that. */
static void adopt(mmrt_neurons *n) {
    if (!mmrt_owner_changes(&n->owner))
        return;
    start_locks(n);
    n->memory = NULL;
    n->slots = NULL;
    n->queue = NULL;
    n->n_slots = n->head = n->n_queued = n->n_reading = n->n_waiting = n->n_threads = 0;
    n->failed = n->closing = false;
    for (int32_t i = 0; i < n->first_rows[n->n_tables]; i++)
        n->slot_of[i] = -1;
    mmrt_owner_set(&n->owner, false);
}

void mmrt_neurons_free(mmrt_neurons *n) {
    if (!n)
        return;
    adopt(n);
    if (!stop_readers(n))
        return;
    if (n->slot_of)
        free_slots(n);
    for (int32_t i = 0; n->files && i < n->n_files; i++)
        mmrt_direct_close(&n->files[i]);
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->ready);
    pthread_cond_destroy(&n->reads);
    free(n->files);
    free(n->tables);
    free(n->first_rows);
    free(n->slot_of);
    free(n);
}

void mmrt_neurons_set_reader(mmrt_neurons *n, mmrt_reader reader) {
    atomic_store(&n->wanted, reader);
}

/* While no reader runs, and there are no slots. */
static mmrt_status change_reader(mmrt_neurons *n, mmrt_reader reader, mmrt_error *err) {
    n->reader = MMRT_READER_MAPPED;
    for (int32_t i = 0; i < n->n_files; i++) {
        mmrt_direct_close(&n->files[i]);
        n->files[i].align = 4096;
    }
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i < n->n_files && reader != MMRT_READER_MAPPED; i++)
        status = mmrt_direct_open(&n->files[i], err);
    if (!status)
        n->reader = reader;
    measure(n);
    return status;
}

/* ---- room ---- */

static uint64_t bytes_of(const mmrt_neurons *n, uint64_t slots) {
    const uint64_t page = MMRT_HUGE_PAGE;
    return (slots * n->slot_bytes + page - 1) / page * page;
}

uint64_t mmrt_neurons_least(const mmrt_neurons *n) {
    uint64_t most = 0;
    for (int32_t i = 0; i < n->n_tables; i++)
        most = n->tables[i].rows > most ? n->tables[i].rows : most;
    return bytes_of(n, most);
}

uint64_t mmrt_neurons_share(const mmrt_neurons *n, uint64_t budget, uint64_t spare) {
    const uint64_t most = budget / SHARE > spare ? budget / SHARE : spare;
    const uint64_t all = bytes_of(n, (uint64_t)n->first_rows[n->n_tables]);
    uint64_t bytes = mmrt_neurons_least(n);
    while (2 * bytes <= most && bytes < all)
        bytes *= 2;
    return bytes < all ? bytes : all;
}

void mmrt_neurons_set_room(mmrt_neurons *n, uint64_t bytes) {
    atomic_store(&n->room, bytes);
}

uint64_t mmrt_neurons_room(const mmrt_neurons *n) {
    return atomic_load(&n->room);
}

bool mmrt_neurons_are_read(const mmrt_neurons *n) {
    return n->memory != NULL;
}

static void put_first(mmrt_neurons *n, int32_t slot) {
    struct row_slot *ring = &n->slots[n->n_slots], *s = &n->slots[slot];
    s->before = n->n_slots;
    s->after = ring->after;
    n->slots[ring->after].before = slot;
    ring->after = slot;
}

static void take_out(mmrt_neurons *n, int32_t slot) {
    const struct row_slot *s = &n->slots[slot];
    n->slots[s->before].after = s->after;
    n->slots[s->after].before = s->before;
}

static mmrt_status make_slots(mmrt_neurons *n, uint64_t bytes, mmrt_error *err) {
    const uint64_t count = bytes / n->slot_bytes, rows = (uint64_t)n->first_rows[n->n_tables];
    const int32_t n_slots = (int32_t)(count < rows ? count : rows);
    n->slots = malloc(((size_t)n_slots + 1) * sizeof *n->slots);
    n->queue = malloc(((size_t)n_slots + 1) * sizeof *n->queue);
    mmrt_status status = MMRT_OK;
    if (!n->slots || !n->queue)
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %d slots", n_slots);
    if (!status)
        status = mmrt_slots_reserve(bytes, true, &n->memory, err);
    if (status) {
        free_slots(n);
        return status;
    }
    n->bytes = bytes;
    n->n_slots = n_slots;
    n->slots[n_slots] = (struct row_slot){-1, n_slots, n_slots, ROW_FREE};
    for (int32_t i = 0; i < n_slots; i++) {
        n->slots[i] = (struct row_slot){.row = -1};
        put_first(n, i);
    }
    return MMRT_OK;
}

void mmrt_neurons_forget(mmrt_neurons *n) {
    adopt(n);
    pthread_mutex_lock(&n->lock);
    for (int32_t i = 0; i < n->n_slots; i++) {
        struct row_slot *s = &n->slots[i];
        if (s->state != ROW_READY) /* a pass that was broken off may still read into it */
            continue;
        n->slot_of[s->row] = -1;
        s->row = -1;
        s->state = ROW_FREE;
    }
    pthread_mutex_unlock(&n->lock);
}

mmrt_status mmrt_neurons_begin(mmrt_neurons *n, mmrt_error *err) {
    adopt(n);
    const uint64_t room = atomic_load(&n->room), had = n->memory ? n->bytes : 0;
    const mmrt_reader reader = atomic_load(&n->wanted);
    const bool changes = room != had || reader != n->reader;
    mmrt_status status = MMRT_OK;
    if (n->closing || (changes && !stop_readers(n)))
        return mmrt_fail(err, MMRT_IO, "the disk has not answered: the model has to be reopened");
    if (changes)
        free_slots(n);
    if (reader != n->reader)
        status = change_reader(n, reader, err);
    if (!status && changes && room)
        status = make_slots(n, room, err);
    pthread_mutex_lock(&n->lock);
    n->failed = false;
    n->turn = 0;
    pthread_mutex_unlock(&n->lock);
    return status;
}

/* ---- reading ---- */

static int32_t table_of(const mmrt_neurons *n, int32_t row) {
    int32_t low = 0, high = n->n_tables;
    while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        *(n->first_rows[middle] <= row ? &low : &high) = middle;
    }
    return low;
}

static uint64_t offset_of(const mmrt_neurons *n, int32_t row) {
    const int32_t table = table_of(n, row);
    const struct mmrt_neurons_table *t = &n->tables[table];
    return t->offset + (uint64_t)(row - n->first_rows[table]) * t->stride;
}

/* Where a file is read: past the page cache, or through it. */
static struct mmrt_source_file file_of(const mmrt_neurons *n, int32_t row) {
    struct mmrt_source_file file = n->files[n->tables[table_of(n, row)].file];
    if (file.fd < 0) {
        file.fd = mmrt_mapping_fd(file.mapping);
        file.align = 1;
    }
    return file;
}

static mmrt_status read_row(const mmrt_neurons *n, int32_t row, uint8_t *to, mmrt_error *err) {
    const struct mmrt_source_file file = file_of(n, row);
    const uint64_t bytes = n->tables[table_of(n, row)].row_bytes, offset = offset_of(n, row);
    mmrt_status status = mmrt_direct_read(&file, mmrt_direct_span(&file, offset, bytes), to, err);
    if (file.align == 1)
        posix_fadvise(file.fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
    return status;
}

static void *read_rows(void *context) {
    mmrt_neurons *n = context;
    pthread_mutex_lock(&n->lock);
    while (!n->closing) {
        if (!n->n_queued) {
            pthread_cond_wait(&n->reads, &n->lock);
            continue;
        }
        const int32_t slot = n->queue[n->head], row = n->slots[slot].row;
        n->head = (n->head + 1) % n->n_slots;
        n->n_queued--;
        uint8_t *to = n->memory + (uint64_t)slot * n->slot_bytes;
        mmrt_error error;
        pthread_mutex_unlock(&n->lock);
        const mmrt_status status = read_row(n, row, to, &error);
        pthread_mutex_lock(&n->lock);
        n->n_reading--;
        n->slots[slot].state = status ? ROW_FREE : ROW_READY;
        if (status) {
            n->slot_of[row] = n->slots[slot].row = -1;
            if (!n->failed) {
                n->error = error;
                n->failed_row = row;
            }
            n->failed = true;
        } else {
            n->stats.read_units++;
            n->stats.read_bytes += n->tables[table_of(n, row)].row_bytes;
        }
        if (status || !n->n_reading)
            pthread_cond_broadcast(&n->ready);
    }
    pthread_mutex_unlock(&n->lock);
    return NULL;
}

/* As many as can be had; the first error, if there are none. Under the lock. */
static int start_readers(mmrt_neurons *n) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before; /* signals are the callers' */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    while (n->n_threads < READERS && !failed) {
        failed = pthread_create(&n->threads[n->n_threads], &attributes, read_rows, n);
        n->n_threads += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return n->n_threads ? 0 : failed;
}

/* ---- use ---- */

/* The slot that was used longest ago, unless a pass that was broken off is still reading into it.
 * Wanted ones are first in the order by now. */
static int32_t victim(const mmrt_neurons *n) {
    int32_t slot = n->slots[n->n_slots].before;
    while (slot != n->n_slots && n->slots[slot].state == ROW_READING)
        slot = n->slots[slot].before;
    return slot;
}

static void admit(mmrt_neurons *n, int32_t row) {
    const int32_t slot = victim(n);
    struct row_slot *s = &n->slots[slot];
    if (s->row >= 0)
        n->slot_of[s->row] = -1;
    take_out(n, slot);
    put_first(n, slot);
    s->row = row;
    s->state = ROW_READING;
    n->slot_of[row] = slot;
    n->queue[(n->head + n->n_queued++) % n->n_slots] = slot;
    n->n_reading++;
}

void mmrt_neurons_want(mmrt_neurons *n, int32_t turn, int32_t table, const uint32_t *rows,
                       size_t count) {
    const int32_t first = n->first_rows[table];
    pthread_mutex_lock(&n->lock);
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        const int32_t slot = n->slot_of[first + (int32_t)rows[i]];
        if (slot < 0)
            continue;
        take_out(n, slot);
        put_first(n, slot);
        found++;
    }
    for (size_t i = 0; i < count && found < count; i++)
        if (n->slot_of[first + (int32_t)rows[i]] < 0)
            admit(n, first + (int32_t)rows[i]);
    n->stats.wanted += count;
    n->stats.found += found;
    n->turn = turn;
    const int failed = n->n_queued ? start_readers(n) : 0;
    if (failed && !n->failed) {
        mmrt_fail(&n->error, MMRT_NO_MEMORY, "cannot start a reader thread: %s", strerror(failed));
        n->failed_row = -1;
        n->failed = true;
    }
    for (int32_t i = 0; i < n->n_queued && i < READERS; i++)
        pthread_cond_signal(&n->reads);
    pthread_cond_broadcast(&n->ready);
    pthread_mutex_unlock(&n->lock);
}

bool mmrt_neurons_wait(mmrt_neurons *n, int32_t turn, double seconds, bool *failed) {
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    const double nanoseconds = (double)deadline.tv_nsec + seconds * 1e9;
    deadline.tv_sec += (time_t)(nanoseconds / 1e9);
    deadline.tv_nsec = (long)fmod(nanoseconds, 1e9);
    pthread_mutex_lock(&n->lock);
    if (!n->n_waiting++)
        n->stalled_since = mmrt_seconds();
    bool there = false, in_time = true;
    while (!there && !n->failed && in_time) {
        there = (n->turn == turn || !turn) && !n->n_reading;
        if (!there)
            in_time = pthread_cond_timedwait(&n->ready, &n->lock, &deadline) == 0;
    }
    if (!--n->n_waiting)
        n->stats.stall_seconds += mmrt_seconds() - n->stalled_since;
    *failed = n->failed;
    pthread_mutex_unlock(&n->lock);
    return there && !*failed;
}

const uint8_t *mmrt_neurons_row(const mmrt_neurons *n, int32_t table, uint32_t row) {
    const int32_t number = n->first_rows[table] + (int32_t)row;
    const uint8_t *slot = n->memory + (uint64_t)n->slot_of[number] * n->slot_bytes;
    const uint32_t align =
        n->reader == MMRT_READER_MAPPED ? 1 : n->files[n->tables[table].file].align;
    return slot + offset_of(n, number) % align;
}

mmrt_status mmrt_neurons_error(mmrt_neurons *n, int32_t *table, uint32_t *row, mmrt_error *err) {
    pthread_mutex_lock(&n->lock);
    const mmrt_status status = n->failed ? n->error.status : MMRT_OK;
    *table = -1;
    if (status && err)
        *err = n->error;
    if (status && n->failed_row >= 0) {
        *table = table_of(n, n->failed_row);
        *row = (uint32_t)(n->failed_row - n->first_rows[*table]);
    }
    pthread_mutex_unlock(&n->lock);
    return status;
}

void mmrt_neurons_get_stats(mmrt_neurons *n, mmrt_demand_stats *stats) {
    adopt(n);
    pthread_mutex_lock(&n->lock);
    *stats = n->stats;
    pthread_mutex_unlock(&n->lock);
    stats->slots = atomic_load(&n->room) / n->slot_bytes;
    stats->slot_bytes = n->slot_bytes;
}
