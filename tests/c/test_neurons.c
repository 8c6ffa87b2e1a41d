/* Rows of tables on demand, over a file made here, whose path is the first argument: by the threads
 * of a step, through failed reads, changes of room and a fork. */
#define _GNU_SOURCE
#include "source/neurons.h"
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 300, N_THREADS = 3, BEGIN = 8192, MOST = 200 };

/* One of whole pages, one of rows that begin and end amid them. */
static const uint64_t row_bytes[2] = {4096, 1000};
static struct mmrt_neurons_table tables[2];
static uint64_t file_bytes;

/* Every byte tells where in the file it is. */
static uint8_t byte_at(uint64_t offset) {
    return (uint8_t)(offset * 2654435761u >> 13);
}

static void make_file(const char *path) {
    file_bytes = BEGIN;
    for (int i = 0; i < 2; i++) {
        tables[i] = (struct mmrt_neurons_table){0, file_bytes, ROWS, row_bytes[i], row_bytes[i]};
        file_bytes += ROWS * row_bytes[i];
    }
    uint8_t *bytes = malloc(file_bytes);
    for (uint64_t i = 0; i < file_bytes; i++)
        bytes[i] = byte_at(i);
    const int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    CHECK(write(fd, bytes, file_bytes) == (ssize_t)file_bytes);
    CHECK(fsync(fd) == 0);
    close(fd);
    free(bytes);
}

/* ---- a step ---- */

struct want {
    mmrt_neurons *neurons;
    int32_t turn, table;
    uint32_t rows[MOST];
    size_t n;
    bool failed;
};

static bool await(struct want *want, int32_t turn) {
    bool failed = false;
    while (!mmrt_neurons_wait(want->neurons, turn, 0.01, &failed) && !failed)
        ;
    return !failed;
}

static void *look(void *context) {
    struct want *want = context;
    if (!await(want, want->turn))
        return NULL;
    for (size_t i = 0; i < want->n; i++) {
        const struct mmrt_neurons_table *table = &tables[want->table];
        const uint64_t offset = table->offset + want->rows[i] * table->row_bytes;
        const uint8_t *row = mmrt_neurons_row(want->neurons, want->table, want->rows[i]);
        CHECK(row[0] == byte_at(offset));
        CHECK(row[table->row_bytes - 1] == byte_at(offset + table->row_bytes - 1));
    }
    return NULL;
}

/* Some rows of a table, in rising order: on all threads. */
static void take_turn(struct want *want, unsigned *seed) {
    want->table = (int32_t)(rand_r(seed) % 2);
    want->n = 0;
    const int part = 1 + rand_r(seed) % 8;
    for (uint32_t row = 0; row < ROWS && want->n < MOST; row++)
        if (rand_r(seed) % 8 < part)
            want->rows[want->n++] = row;
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        pthread_create(&threads[i], NULL, look, want);
    if (await(want, 0))
        mmrt_neurons_want(want->neurons, want->turn, want->table, want->rows, want->n);
    want->failed = !await(want, want->turn);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void take_pass(mmrt_neurons *neurons, unsigned *seed) {
    mmrt_error error;
    CHECK(mmrt_neurons_begin(neurons, &error) == MMRT_OK);
    CHECK(mmrt_neurons_are_read(neurons));
    struct want want = {.neurons = neurons};
    for (want.turn = 1; want.turn <= 20 && !want.failed; want.turn++)
        take_turn(&want, seed);
    CHECK(!want.failed);
}

/* ---- tests ---- */

static void test_rooms(mmrt_neurons *neurons, mmrt_reader reader) {
    unsigned seed = 7;
    mmrt_demand_stats stats;
    mmrt_neurons_set_reader(neurons, reader);
    const uint64_t least = mmrt_neurons_least(neurons);
    CHECK(mmrt_neurons_share(neurons, 0, 0) == least);
    CHECK(mmrt_neurons_share(neurons, UINT64_MAX, 0) >= least);
    for (int i = 0; i < 4; i++) {
        mmrt_neurons_set_room(neurons, i % 2 ? mmrt_neurons_share(neurons, UINT64_MAX, 0) : least);
        take_pass(neurons, &seed);
        take_pass(neurons, &seed);
    }
    mmrt_neurons_get_stats(neurons, &stats);
    CHECK(stats.wanted > stats.found && stats.found > 0);
    CHECK(stats.read_units == stats.wanted - stats.found);
    mmrt_error error;
    mmrt_neurons_set_room(neurons, 0);
    CHECK(mmrt_neurons_begin(neurons, &error) == MMRT_OK);
    CHECK(!mmrt_neurons_are_read(neurons));
}

/* The pass ends; the next one, of a whole file, finds all that it wants. */
static void test_failed_reads(mmrt_neurons *neurons, const char *path) {
    unsigned seed = 9;
    mmrt_error error;
    int32_t table;
    uint32_t row;
    mmrt_neurons_set_room(neurons, mmrt_neurons_least(neurons));
    CHECK(mmrt_neurons_begin(neurons, &error) == MMRT_OK);
    CHECK(truncate(path, BEGIN) == 0);
    struct want want = {.neurons = neurons, .turn = 1};
    take_turn(&want, &seed);
    CHECK(want.failed);
    CHECK_STATUS(mmrt_neurons_error(neurons, &table, &row, &error), MMRT_IO, &error, "is gone");
    CHECK(table == want.table && row < ROWS);
    make_file(path);
    take_pass(neurons, &seed);
    CHECK(mmrt_neurons_error(neurons, &table, &row, &error) == MMRT_OK);
}

static void test_a_fork(mmrt_neurons *neurons) {
#ifndef __SANITIZE_THREAD__ /* which starts no threads in children of processes that have some */
    unsigned seed = 11;
    take_pass(neurons, &seed);
    const pid_t child = fork();
    if (child == 0) {
        take_pass(neurons, &seed);
        mmrt_neurons_free(neurons);
        _exit(check_result());
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    take_pass(neurons, &seed);
#else
    (void)neurons;
#endif
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    make_file(argv[1]);
    mmrt_error error;
    mmrt_mapping *mapping;
    mmrt_neurons *neurons;
    CHECK(mmrt_mapping_open(argv[1], &mapping, &error) == MMRT_OK);
    CHECK(mmrt_neurons_create(&mapping, 1, tables, 2, &neurons, &error) == MMRT_OK);
    test_rooms(neurons, MMRT_READER_MAPPED);
    if (mmrt_reader_check(MMRT_READER_THREADS, mapping, &error) == MMRT_OK)
        test_rooms(neurons, MMRT_READER_THREADS);
    test_failed_reads(neurons, argv[1]);
    test_a_fork(neurons);
    mmrt_neurons_free(neurons);
    mmrt_mapping_close(mapping);
    return check_result();
}
