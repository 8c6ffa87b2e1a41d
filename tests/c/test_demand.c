/* Units on demand over a file made here, whose path is the first argument: items of two sizes, in
 * passes by several threads, as the operations of a mixture of experts make them. */
#define _GNU_SOURCE
#include "source/source.h"
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    IN_ORDER = 6,
    BANKS = 3,
    ITEMS = 12,
    PARTS = 3,
    TOGETHER = 2,
    WANTED = 4,
    N_UNITS = IN_ORDER + BANKS * ITEMS * PARTS,
    N_THREADS = 3,
    ROWS = 5,
    OFFSET = 777,
};

static struct mmrt_unit units[N_UNITS];
static struct mmrt_bank banks[BANKS];
static uint64_t file_bytes;

/* Every byte tells where in the file it is. */
static uint8_t byte_at(uint64_t offset) {
    return (uint8_t)(offset * 2654435761u >> 13);
}

/* Units lie in the file part by part, as in stacks, and not item by item. */
static void make_units(void) {
    file_bytes = OFFSET;
    for (int i = 0; i < IN_ORDER; i++) {
        units[i] = (struct mmrt_unit){.rows = ROWS, .offset = file_bytes, .bytes = 300000};
        file_bytes += units[i].bytes;
    }
    for (int bank = 0; bank < BANKS; bank++) {
        banks[bank] = (struct mmrt_bank){ITEMS, PARTS, TOGETHER, WANTED};
        for (int part = 0; part < PARTS; part++)
            for (int item = 0; item < ITEMS; item++) {
                units[IN_ORDER + (bank * ITEMS + item) * PARTS + part] = (struct mmrt_unit){
                    .rows = ROWS,
                    .offset = file_bytes,
                    .bytes = part == 2 && bank == 1 ? 60000 : 40000,
                };
                file_bytes += part == 2 && bank == 1 ? 60000 : 40000;
            }
    }
}

static void make_file(const char *path) {
    uint8_t *bytes = malloc(file_bytes);
    for (uint64_t i = 0; i < file_bytes; i++)
        bytes[i] = byte_at(i);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    CHECK(pwrite(fd, bytes, file_bytes, 0) == (ssize_t)file_bytes);
    CHECK(fsync(fd) == 0);
    close(fd);
    free(bytes);
}

/* ---- a pass ---- */

/* What threads do with some parts of the items that a pass wants. */
struct work {
    mmrt_source *source;
    int bank, first_part, end_part;
    const uint32_t *items;
    atomic_int next, wrong, missing;
    int n_rows; /* at which it is broken off */
};

static bool use_row(struct work *work, int32_t number, int row) {
    const struct mmrt_unit *unit = &units[number];
    bool ended;
    const uint8_t *at = mmrt_source_acquire(work->source, number, -1, &ended);
    if (!at)
        return false;
    for (uint64_t i = unit->bytes * (uint64_t)row / ROWS;
         i < unit->bytes * (uint64_t)(row + 1) / ROWS; i++)
        if (at[i] != byte_at(unit->offset + i)) {
            atomic_fetch_add(&work->wrong, 1);
            break;
        }
    mmrt_source_release(work->source, number, 1);
    return true;
}

static void *use_rows(void *context) {
    struct work *work = context;
    for (;;) {
        const int row = atomic_fetch_add(&work->next, 1);
        if (row >= work->n_rows)
            return NULL;
        const int32_t item = work->bank * ITEMS + (int32_t)work->items[row / ROWS];
        for (int part = work->first_part; part < work->end_part; part++)
            if (!use_row(work, IN_ORDER + item * PARTS + part, row % ROWS)) {
                atomic_fetch_add(&work->missing, 1);
                return NULL;
            }
    }
}

static bool use_parts(struct work work) {
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, use_rows, &work) == 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(work.wrong == 0);
    return !work.missing;
}

/* False: it was broken off, which it is at this row of items if that is not negative. */
static bool use_bank(mmrt_source *source, int bank, const uint32_t *items, size_t n,
                     size_t n_recent, int broken_at) {
    uint32_t wanted[ITEMS];
    memcpy(wanted, items, n * sizeof *items);
    const struct mmrt_want want = {bank, wanted, n, items + n - n_recent, 1, n_recent};
    mmrt_source_want(source, &want);
    const int n_rows = broken_at < 0 ? (int)n * ROWS : broken_at;
    struct work work = {source, bank, 0, TOGETHER, wanted, 0, 0, 0, n_rows};
    if (!use_parts(work) || broken_at >= 0)
        return false;
    work.first_part = TOGETHER;
    work.end_part = PARTS;
    return use_parts(work);
}

/* Some items, rising. */
static size_t draw(uint32_t *items, size_t n) {
    size_t drawn = 0;
    for (uint32_t i = 0; i < ITEMS; i++)
        if ((size_t)(rand() % ITEMS) < n)
            items[drawn++] = i;
    if (!drawn)
        items[drawn++] = (uint32_t)(rand() % ITEMS);
    return drawn;
}

static bool run_pass(mmrt_source *source, size_t n_wanted, int broken_at) {
    mmrt_error error;
    uint32_t items[ITEMS];
    bool ended, complete = true;
    CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
    for (int32_t i = 0; complete && i < IN_ORDER; i++) {
        const uint8_t *at = mmrt_source_acquire(source, i, -1, &ended);
        complete = at != NULL;
        CHECK(!at || at[0] == byte_at(units[i].offset));
        if (at)
            mmrt_source_release(source, i, ROWS);
    }
    for (int bank = 0; complete && bank < BANKS; bank++) {
        const size_t n = draw(items, n_wanted);
        complete = use_bank(source, bank, items, n, n < WANTED ? n : WANTED,
                            bank == BANKS - 1 ? broken_at : -1);
    }
    mmrt_source_end(source, complete);
    return complete;
}

static mmrt_source *start(mmrt_mapping *mapping, mmrt_reader reader, mmrt_plan *plan) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, IN_ORDER, banks, BANKS, &source,
                             &error) == MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_plan(source, 0, plan, &error) == MMRT_NO_MEMORY && plan->kept == 0);
    return source;
}

static mmrt_stream_stats stats_of(mmrt_source *source) {
    mmrt_stream_stats stats;
    mmrt_source_get_stats(source, &stats);
    return stats;
}

/* ---- tests ---- */

/* Bytes are right at every budget, rising, falling and in turn, for passes that want few items and
 * those that want all. */
static void test_budgets(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_error error;
    mmrt_plan ends, plan;
    mmrt_source *source = start(mapping, reader, &ends);
    CHECK_STATUS(mmrt_source_set_budget(source, ends.least - 1, &error), MMRT_NO_MEMORY, &error,
                 "the least is");
    for (int i = 0; i < 40; i++) {
        const uint64_t part = i < 12 ? (uint64_t)i : i < 24 ? (uint64_t)(24 - i) : rand() % 13u;
        const uint64_t budget = ends.least + part * (ends.most - ends.least) / 12;
        CHECK(mmrt_source_plan(source, budget, &plan, &error) == MMRT_OK);
        CHECK(plan.kept + plan.ring + plan.cache <= budget || part == 12);
        CHECK(mmrt_source_set_budget(source, budget, &error) == MMRT_OK);
        const mmrt_stream_stats before = stats_of(source);
        CHECK(before.cache_bytes == plan.cache && before.demand.slots == plan.slots);
        for (int j = 0; j < 4; j++)
            CHECK(run_pass(source, j == 3 ? ITEMS : WANTED, -1));
        const mmrt_stream_stats after = stats_of(source);
        const uint64_t missed =
            after.demand.wanted - before.demand.wanted - (after.demand.found - before.demand.found);
        CHECK(after.demand.read_units - before.demand.read_units == PARTS * missed);
        CHECK((part < 12) == (plan.cache > 0));
    }
    mmrt_source_free(source);
}

/* What was wanted once is found again, as long as nothing is wanted more. */
static void test_what_is_there(mmrt_mapping *mapping, mmrt_reader reader) {
    const uint32_t items[] = {1, 2, 5, 7};
    mmrt_error error;
    mmrt_plan ends;
    mmrt_source *source = start(mapping, reader, &ends);
    CHECK(mmrt_source_set_budget(source, (ends.least + 3 * ends.most) / 4, &error) == MMRT_OK);
    for (int i = 0; i < 5; i++) {
        const uint64_t found = stats_of(source).demand.found;
        CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
        mmrt_source_skip(source, 0, IN_ORDER);
        CHECK(use_bank(source, 1, items, 4, 4, -1));
        mmrt_source_end(source, true);
        CHECK(stats_of(source).demand.found - found == (i ? 4 : 0));
        if (i == 2) /* fewer slots: the others are given back first */
            CHECK(mmrt_source_set_budget(source, (ends.least + ends.most) / 2, &error) == MMRT_OK);
    }
    mmrt_source_free(source);
}

/* A pass that is broken off leaves the next one right, and its budget too. */
static void test_broken_off(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_error error;
    mmrt_plan ends;
    mmrt_source *source = start(mapping, reader, &ends);
    for (int i = 0; i < 60; i++) {
        const uint64_t budget =
            ends.least + (uint64_t)(rand() % 10) * (ends.most - ends.least) / 10;
        if (i % 3 == 0)
            CHECK(mmrt_source_set_budget(source, budget, &error) == MMRT_OK);
        CHECK(!run_pass(source, i % 2 ? ITEMS : WANTED, rand() % ROWS));
        if (i % 4 == 0)
            CHECK(mmrt_source_set_budget(source, ends.least, &error) == MMRT_OK);
        CHECK(run_pass(source, WANTED, -1));
    }
    mmrt_source_free(source);
}

/* A file cut short ends the pass, and says which unit did not come; when it is whole again, so are
 * passes. */
static void test_cut_short(const char *path, mmrt_mapping *mapping, mmrt_reader reader) {
    const uint32_t items[] = {ITEMS - 1};
    mmrt_error error;
    mmrt_plan ends;
    mmrt_source *source = start(mapping, reader, &ends);
    CHECK(mmrt_source_set_budget(source, (ends.least + 2 * ends.most) / 3, &error) == MMRT_OK);
    CHECK(truncate(path, (off_t)file_bytes - 50000) == 0);
    CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
    mmrt_source_skip(source, 0, IN_ORDER);
    const bool found = use_bank(source, BANKS - 1, items, 1, 1, -1);
    if (!found) {
        CHECK(mmrt_source_error(source, &error) == MMRT_IO && strstr(error.message, path));
        CHECK(mmrt_source_failed_unit(source) == N_UNITS - 1);
    }
    mmrt_source_end(source, found);
    make_file(path);
    CHECK(run_pass(source, ITEMS, -1));
    CHECK(!found);
    mmrt_source_free(source);
}

/* A child starts with an empty cache; the parent goes on. */
static void test_fork(mmrt_mapping *mapping, mmrt_reader reader) {
#ifndef __SANITIZE_THREAD__ /* which starts no threads in children of processes that have some */
    mmrt_error error;
    mmrt_plan ends;
    mmrt_source *source = start(mapping, reader, &ends);
    CHECK(mmrt_source_set_budget(source, (ends.least + ends.most) / 2, &error) == MMRT_OK);
    CHECK(run_pass(source, WANTED, -1));
    const pid_t child = fork();
    if (!child) {
        check_failures = 0;
        CHECK(run_pass(source, WANTED, -1) && run_pass(source, ITEMS, -1));
        CHECK(mmrt_source_set_budget(source, ends.least, &error) == MMRT_OK);
        CHECK(run_pass(source, WANTED, -1));
        _exit(check_result());
    }
    int status;
    CHECK(run_pass(source, WANTED, -1));
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    mmrt_source_free(source);
#else
    (void)mapping, (void)reader;
#endif
}

/* The least recently used goes first where that is asked for. */
static void test_least_recent(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_error error;
    mmrt_plan ends;
    mmrt_source *source = start(mapping, reader, &ends);
    mmrt_source_set_policy(source, MMRT_POLICY_LRU);
    CHECK(mmrt_source_set_budget(source, (3 * ends.least + ends.most) / 4, &error) == MMRT_OK);
    mmrt_demand_stats bank;
    mmrt_source_bank_stats(source, 1, &bank);
    CHECK(bank.slots > 0 && bank.slots < ITEMS);
    for (uint64_t i = 0; i < 3 * ITEMS; i++) { /* around in a circle: nothing is ever found */
        const uint32_t item = (uint32_t)i % ITEMS;
        CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
        mmrt_source_skip(source, 0, IN_ORDER);
        CHECK(use_bank(source, 1, &item, 1, 1, -1));
        mmrt_source_end(source, true);
    }
    CHECK(stats_of(source).demand.found == 0);
    mmrt_source_free(source);
}

int main(int argc, char **argv) {
    (void)argc;
    make_units();
    for (mmrt_reader reader = 0; reader < MMRT_READER_COUNT; reader++) {
        mmrt_mapping *mapping;
        mmrt_error error;
        make_file(argv[1]);
        CHECK(mmrt_mapping_open(argv[1], &mapping, &error) == MMRT_OK);
        const mmrt_status usable = mmrt_reader_check(reader, mapping, &error);
        if (usable) { /* not everywhere */
            CHECK(usable == MMRT_UNSUPPORTED);
            printf("%s: %s\n", mmrt_reader_name(reader), error.message);
        } else {
            test_budgets(mapping, reader);
            test_what_is_there(mapping, reader);
            test_broken_off(mapping, reader);
            test_fork(mapping, reader);
            test_least_recent(mapping, reader);
            if (reader !=
                MMRT_READER_MAPPED) /* else SIGBUS may come, which is the mapping's matter */
                test_cut_short(argv[1], mapping, reader);
        }
        mmrt_mapping_close(mapping);
    }
    return check_result();
}
