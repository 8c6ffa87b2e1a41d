/* Streams over a file made here, whose path is the first argument; passes by several threads, as
 * operations make them. */
#define _GNU_SOURCE
#include "source/source.h"
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_UNITS = 40, N_THREADS = 3, ROWS = 10, OFFSET = 777 };

static struct mmrt_unit units[N_UNITS];
static uint64_t file_bytes;

/* Every byte tells where in the file it is. */
static uint8_t byte_at(uint64_t offset) {
    return (uint8_t)(offset * 2654435761u >> 13);
}

static void make_file(const char *path) {
    file_bytes = OFFSET;
    for (int i = 0; i < N_UNITS; i++) {
        units[i].rows = ROWS;
        units[i].bytes = i % 5 == 4 ? 3000 : 300000 + 1000 * (uint64_t)i;
        units[i].offset = file_bytes;
        file_bytes += units[i].bytes;
    }
    for (int i = 1; i < N_UNITS; i += 3) { /* passes do not read in the file's order */
        const struct mmrt_unit other = units[i - 1];
        units[i - 1] = units[i];
        units[i] = other;
    }
    uint8_t *bytes = malloc(file_bytes);
    for (uint64_t i = 0; i < file_bytes; i++)
        bytes[i] = byte_at(i);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    CHECK(write(fd, bytes, file_bytes) == (ssize_t)file_bytes);
    CHECK(fsync(fd) == 0);
    close(fd);
    free(bytes);
}

/* ---- a pass, as the threads of a step make it ---- */

struct pass {
    mmrt_source *source;
    atomic_int next; /* row of all units in order */
    atomic_int wrong, missing;
    int n_rows;                   /* at which it is broken off */
    int first_skipped, n_skipped; /* units */
    int slow_us;
};

static void *take_rows(void *context) {
    struct pass *pass = context;
    for (;;) {
        const int row = atomic_fetch_add(&pass->next, 1);
        if (row >= pass->n_rows)
            return NULL;
        bool ended;
        const int32_t skipped = pass->first_skipped, after = skipped + pass->n_skipped;
        if (pass->n_skipped && row == skipped * ROWS)
            mmrt_source_skip(pass->source, skipped, after);
        if (row / ROWS >= skipped && row / ROWS < after)
            continue;
        const struct mmrt_unit *unit = &units[row / ROWS];
        const uint8_t *at = mmrt_source_acquire(pass->source, row / ROWS, -1, &ended);
        if (!at) {
            CHECK(ended);
            atomic_fetch_add(&pass->missing, 1);
            return NULL;
        }
        const uint64_t first = unit->bytes * (uint64_t)(row % ROWS) / ROWS;
        const uint64_t end = unit->bytes * (uint64_t)(row % ROWS + 1) / ROWS;
        for (uint64_t i = first; i < end; i++)
            if (at[i] != byte_at(unit->offset + i)) {
                atomic_fetch_add(&pass->wrong, 1);
                break;
            }
        if (pass->slow_us)
            usleep((useconds_t)pass->slow_us);
        mmrt_source_release(pass->source, row / ROWS, 1);
    }
}

/* The rows that could not be had. */
static int run(struct pass pass) {
    mmrt_source *source = pass.source;
    pthread_t threads[N_THREADS];
    mmrt_error error;
    const mmrt_status begun = mmrt_source_begin(source, &error);
    CHECK(begun == MMRT_OK);
    if (begun)
        return N_UNITS * ROWS;
    for (int i = 0; i < N_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, take_rows, &pass) == 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    mmrt_source_end(source, !pass.missing);
    CHECK(pass.wrong == 0);
    return pass.missing;
}

static int run_pass(mmrt_source *source, int slow_us) {
    return run((struct pass){.source = source, .n_rows = N_UNITS * ROWS, .slow_us = slow_us});
}

static uint64_t least_budget(mmrt_source *source) {
    mmrt_plan plan;
    mmrt_error error;
    CHECK(mmrt_source_plan(source, 0, &plan, &error) == MMRT_NO_MEMORY && plan.kept == 0);
    return plan.least;
}

/* ---- tests ---- */

/* The bytes are right at every budget, and while budgets change; each pass reads what is not kept,
 * and no more than the ring holds besides. */
static void test_passes(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_is_kept(source, 0, N_UNITS) && !mmrt_source_is_limited(source));
    CHECK(mmrt_source_set_budget(source, 2 * file_bytes, &error) == MMRT_OK);
    CHECK(run_pass(source, 0) == 0 && !mmrt_source_is_limited(source));
    const uint64_t least = least_budget(source);
    CHECK_STATUS(mmrt_source_set_budget(source, least - 1, &error), MMRT_NO_MEMORY, &error,
                 "the least is");
    mmrt_plan plan;
    uint64_t kept = 0;
    for (uint64_t budget = least; budget < 2 * file_bytes; budget += file_bytes / 5) {
        CHECK(mmrt_source_plan(source, budget, &plan, &error) == MMRT_OK);
        CHECK(plan.kept + plan.ring <= budget && plan.kept >= kept);
        kept = plan.kept;
        CHECK(mmrt_source_set_budget(source, budget, &error) == MMRT_OK);
        CHECK(run_pass(source, 0) == 0);
        mmrt_stream_stats before, after;
        mmrt_source_get_stats(source, &before);
        CHECK(before.kept_bytes == plan.kept && before.ring_bytes == plan.ring);
        CHECK(run_pass(source, 0) == 0);
        mmrt_source_get_stats(source, &after);
        const uint64_t read = after.read_bytes - before.read_bytes;
        CHECK(after.steps == before.steps + 1 && after.loaded_bytes == before.loaded_bytes);
        CHECK(read + plan.ring >= plan.total - plan.kept);
        CHECK(read <= plan.total - plan.kept + 4096 * N_UNITS + plan.ring);
    }
    CHECK(kept == plan.total && plan.ring == 0 && plan.most >= plan.total);
    for (int i = 0; i < 10; i++) {
        const uint64_t budget = least + (uint64_t)rand() % (file_bytes - least);
        CHECK(mmrt_source_set_budget(source, budget, &error) == MMRT_OK);
        CHECK(run_pass(source, i % 3 ? 0 : 100) == 0);
    }
    mmrt_source_free(source);
}

/* Passes that do without some units, whatever has become of these when they say so; those after
 * them have all. */
static void test_skipped_units(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    const uint64_t least = least_budget(source);
    struct pass pass = {.source = source, .n_rows = N_UNITS * ROWS};
    for (int i = 0; i < 60; i++) {
        if (i % 10 == 0)
            CHECK(mmrt_source_set_budget(source, least + (uint64_t)i * file_bytes / 60, &error) ==
                  MMRT_OK);
        pass.first_skipped = i % 2 ? N_UNITS - 1 - rand() % 10 : rand() % N_UNITS;
        pass.n_skipped = 1 + rand() % (N_UNITS - pass.first_skipped);
        pass.slow_us = i % 3 ? 0 : 100; /* then the ring is far ahead */
        CHECK(run(pass) == 0);
        if (i % 4 == 0)
            CHECK(run_pass(source, 0) == 0);
    }
    pass.first_skipped = pass.slow_us = 0;
    pass.n_skipped = N_UNITS;
    mmrt_stream_stats before, after;
    mmrt_source_get_stats(source, &before);
    for (int i = 0; i < 20; i++) /* nothing is read but what may be wanted next */
        CHECK(run(pass) == 0);
    mmrt_source_get_stats(source, &after);
    CHECK(after.steps == before.steps + 20);
    mmrt_source_free(source);
}

/* A pass that is broken off, between units and within one, leaves the next one right. */
static void test_broken_off(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_set_budget(source, least_budget(source), &error) == MMRT_OK);
    for (int n_rows = 0; n_rows < N_UNITS * ROWS; n_rows += 5 * ROWS / 2) {
        struct pass pass = {.source = source, .n_rows = n_rows};
        CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
        take_rows(&pass);
        mmrt_source_end(source, false);
        CHECK(pass.wrong == 0 && pass.missing == 0);
        if (n_rows % 2)
            CHECK(mmrt_source_set_budget(source, file_bytes / 2, &error) == MMRT_OK);
        CHECK(run_pass(source, 0) == 0);
    }
    mmrt_source_free(source);
}

/* Waiting for a unit that does not come ends when it has to. */
static void test_waiting_has_an_end(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    bool ended;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_set_budget(source, least_budget(source), &error) == MMRT_OK);
    CHECK(mmrt_source_begin(source, &error) == MMRT_OK);
    /* No slot is free for the last unit, for nobody takes the first. */
    CHECK(!mmrt_source_acquire(source, N_UNITS - 1, 0.01, &ended) && !ended);
    mmrt_source_interrupt(source);
    CHECK(!mmrt_source_acquire(source, N_UNITS - 1, -1, &ended) && ended);
    mmrt_source_end(source, false);
    CHECK(run_pass(source, 0) == 0);
    mmrt_source_free(source);
}

/* A file that has become shorter ends the pass with an error that names it; once it is whole again,
 * so are passes. Everything is streamed, so that no mapped page is touched. */
static void test_shrunk_file(const char *path, mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_set_budget(source, least_budget(source), &error) == MMRT_OK);
    CHECK(run_pass(source, 0) == 0);
    for (int part = 0; part < 2; part++) { /* where a read begins behind its end, and amid one */
        const off_t size = part ? (off_t)file_bytes / 2 : 100;
        char words[64];
        make_file(path);
        CHECK(truncate(path, size) == 0);
        CHECK(run_pass(source, 0) > 0);
        snprintf(words, sizeof words, "is gone: the file was cut to %lld bytes", (long long)size);
        CHECK_STATUS(mmrt_source_error(source, &error), MMRT_IO, &error, words);
        CHECK(strstr(error.message, path));
    }
    make_file(path);
    CHECK(run_pass(source, 0) == 0);
    CHECK(unlink(path) == 0); /* its bytes stay as long as it is open */
    CHECK(run_pass(source, 0) == 0);
    mmrt_source_free(source);
}

static void test_fork(mmrt_mapping *mapping, mmrt_reader reader) {
#ifdef WITHOUT_FORKS /* ThreadSanitizer does not follow them */
    (void)mapping, (void)reader;
#else
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    CHECK(mmrt_source_set_budget(source, least_budget(source) + 1000000, &error) == MMRT_OK);
    CHECK(run_pass(source, 0) == 0);
    const pid_t child = fork();
    if (!child) {
        const int missing = run_pass(source, 0) + run_pass(source, 0);
        mmrt_source_free(source);
        _exit(missing || check_failures);
    }
    int status;
    CHECK(run_pass(source, 0) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    mmrt_source_free(source);
#endif
}

static void test_single_rows(mmrt_mapping *mapping, mmrt_reader reader) {
    mmrt_source *source = NULL;
    mmrt_error error;
    CHECK(mmrt_source_create(&mapping, 1, units, N_UNITS, N_UNITS, NULL, 0, &source, &error) ==
          MMRT_OK);
    CHECK(mmrt_source_set_reader(source, reader, &error) == MMRT_OK);
    uint8_t *scratch = malloc(mmrt_source_read_scratch(5000));
    const uint64_t offsets[] = {0, 1, 4095, 4096, 100000, file_bytes - 5000};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        const uint8_t *at = mmrt_source_read(source, 0, offsets[i], 5000, scratch);
        CHECK(at);
        for (uint64_t j = 0; at && j < 5000; j += 499)
            CHECK(at[j] == byte_at(offsets[i] + j));
    }
    free(scratch);
    mmrt_source_free(source);
}

int main(int argc, char **argv) {
    (void)argc;
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
            test_passes(mapping, reader);
            test_skipped_units(mapping, reader);
            test_broken_off(mapping, reader);
            test_waiting_has_an_end(mapping, reader);
            test_fork(mapping, reader);
            test_single_rows(mapping, reader);
            if (reader !=
                MMRT_READER_MAPPED) /* else SIGBUS may come, which is the mapping's matter */
                test_shrunk_file(argv[1], mapping, reader);
        }
        mmrt_mapping_close(mapping);
    }
    return check_result();
}
