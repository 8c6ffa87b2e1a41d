/* Files that are cut short while they are mapped. The path of a file to be made is the argument. */
#define _GNU_SOURCE
#include "mmrt.h"
#include "check.h"
#include "quant/quant.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_PAGES = 64, N_THREADS = 8, COLS = 1024, ROWS = 2048 };

static const char *path;
static size_t page;

/* A file of `size` bytes, each 1 + the number of its page, or as floats 1.0. */
static void make_file(size_t size, bool floats) {
    unsigned char *bytes = malloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(1 + i / page);
    const float one = 1;
    for (size_t i = 0; floats && i < size; i += sizeof one)
        memcpy(bytes + i, &one, sizeof one);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    CHECK(write(fd, bytes, size) == (ssize_t)size);
    close(fd);
    free(bytes);
}

static mmrt_mapping *map_with(const mmrt_map_request *request) {
    mmrt_mapping *mapping;
    mmrt_error error;
    CHECK_STATUS(mmrt_mapping_create(request, &mapping, &error), MMRT_OK, &error, "");
    if (!mapping)
        exit(1);
    return mapping;
}

static mmrt_mapping *map(void) {
    return map_with(&(mmrt_map_request){.path = path, .fd = -1});
}

static unsigned char byte_at(const mmrt_mapping *mapping, uint64_t offset) {
    return ((const volatile unsigned char *)mmrt_mapping_data(mapping))[offset];
}

static void test_touching_what_is_gone(void) {
    make_file(N_PAGES * page, false);
    mmrt_mapping *mapping = map();
    mmrt_error error;
    CHECK(byte_at(mapping, 20 * page) == 21);
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, N_PAGES * page, NULL, &error), MMRT_OK, &error, "");

    CHECK(truncate(path, (off_t)(10 * page)) == 0);
    CHECK(byte_at(mapping, 9 * page) == 10); /* what is left is still there */
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, 10 * page, NULL, &error), MMRT_OK, &error, "");
    CHECK(byte_at(mapping, 20 * page + 5) == 0 && byte_at(mapping, 30 * page) == 0);
    CHECK(mmrt_mapping_unreported(mapping));
    uint64_t gone = 0;
    char words[64];
    snprintf(words, sizeof words, "byte %zu is gone: the file was cut to %zu bytes", 20 * page + 5,
             10 * page);
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, 1, &gone, &error), MMRT_IO, &error, words);
    CHECK(strstr(error.message, path) && gone == 20 * page + 5);
    CHECK(!mmrt_mapping_unreported(mapping));

    /* Filling the file again brings nothing back. */
    make_file(N_PAGES * page, false);
    CHECK(byte_at(mapping, 20 * page) == 0);
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, 0, NULL, &error), MMRT_IO, &error, words);
    mmrt_mapping_close(mapping);
}

/* The kernel raises no signal for the rest of the page that a file ends in. */
static void test_cut_within_a_page(void) {
    make_file(N_PAGES * page, false);
    mmrt_mapping *mapping = map();
    mmrt_error error;
    uint64_t gone = 0;
    CHECK(truncate(path, (off_t)(N_PAGES * page - 100)) == 0);
    CHECK(byte_at(mapping, N_PAGES * page - 1) == 0);
    CHECK_STATUS(mmrt_mapping_check(mapping, page, (N_PAGES - 1) * page, &gone, &error), MMRT_IO,
                 &error, "is gone");
    CHECK(gone == N_PAGES * page - 100);
    CHECK_STATUS(mmrt_bytes_check((const char *)mmrt_mapping_data(mapping) + 5, 10, &error),
                 MMRT_OK, &error, "");
    CHECK_STATUS(mmrt_bytes_check((const char *)mmrt_mapping_data(mapping) + (N_PAGES - 1) * page,
                                  page, &error),
                 MMRT_IO, &error, "is gone");
    CHECK_STATUS(mmrt_bytes_check(&error, sizeof error, &error), MMRT_OK, &error, "");
    mmrt_mapping_close(mapping);
}

static void test_part_of_a_file(void) {
    make_file(N_PAGES * page, false);
    mmrt_mapping *mapping = map_with(
        &(mmrt_map_request){.path = path, .fd = -1, .offset = 8 * page, .length = 20 * page});
    mmrt_error error;
    char words[32];
    CHECK(truncate(path, (off_t)(10 * page)) == 0);
    CHECK(byte_at(mapping, 0) == 9 && byte_at(mapping, 4 * page) == 0);
    snprintf(words, sizeof words, "byte %zu is gone", 12 * page); /* of the file */
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, 0, NULL, &error), MMRT_IO, &error, words);
    mmrt_mapping_close(mapping);
}

static void test_writing_to_what_is_gone(void) {
    make_file(N_PAGES * page, false);
    mmrt_mapping *mapping = map_with(&(mmrt_map_request){.path = path, .fd = -1, .writable = true});
    mmrt_error error;
    CHECK(truncate(path, 0) == 0);
    memset(mmrt_mapping_data(mapping), 7, N_PAGES * page);
    CHECK(byte_at(mapping, 5 * page) == 7);
    CHECK_STATUS(mmrt_mapping_check(mapping, 0, 0, NULL, &error), MMRT_IO, &error,
                 "byte 0 is gone: the file was cut to 0 bytes");
    mmrt_mapping_close(mapping);
}

/* ---- in kernels, with eight threads ---- */

static void *cut_soon(void *delay) {
    usleep(*(useconds_t *)delay);
    CHECK(truncate(path, (off_t)(3 * page + 17)) == 0);
    return NULL;
}

static mmrt_weight matrix(const mmrt_mapping *mapping) {
    return (mmrt_weight){.data = mmrt_mapping_data(mapping),
                         .type = MMRT_TYPE_F32,
                         .rows = ROWS,
                         .cols = COLS,
                         .name = "ones"};
}

static void test_multiplying(mmrt_pool *pool) {
    float *x = malloc(COLS * sizeof *x), *y = malloc(ROWS * sizeof *y);
    for (int i = 0; i < COLS; i++)
        x[i] = 1;
    int faults = 0;
    for (useconds_t round = 0; round < 20; round++) {
        make_file((size_t)ROWS * COLS * sizeof(float), true);
        mmrt_mapping *mapping = map();
        const mmrt_weight w = matrix(mapping);
        useconds_t delay = round * 300;
        pthread_t cutter;
        CHECK(pthread_create(&cutter, NULL, cut_soon, &delay) == 0);
        mmrt_error error = {0};
        mmrt_status status;
        do {
            status = mmrt_matmul(pool, MMRT_ISA_REF, &w, x, 1, y, &error);
            for (int r = 0; status == MMRT_OK && r < ROWS; r++)
                CHECK(y[r] == COLS); /* what is given out is right */
        } while (status == MMRT_OK);
        CHECK(status == MMRT_IO && strstr(error.message, path));
        CHECK(strstr(error.message, "is gone: the file was cut to"));
        pthread_join(cutter, NULL);
        faults += mmrt_mapping_check(mapping, 0, 0, NULL, NULL) != MMRT_OK;
        mmrt_mapping_close(mapping);
    }
    CHECK(faults > 0); /* some were cut between two kernels */
    free(x);
    free(y);
}

static const mmrt_layer_state LAYER = {.kind = MMRT_STATE_NOTHING};

/* A program whose two weights are the two halves of the file. */
static mmrt_program *make_program(const mmrt_mapping *mapping, mmrt_state_store *store) {
    mmrt_program *program;
    mmrt_error error = {0};
    int32_t embedding, output, buffer;
    mmrt_weight half = matrix(mapping);
    half.rows /= 2;
    CHECK(mmrt_program_create(MMRT_ISA_REF, 4, store, false, &program, &error) == MMRT_OK);
    half.name = "embedding";
    CHECK(mmrt_program_add_weight(program, &half, &embedding, &error) == MMRT_OK);
    half.name = "output";
    half.data = (const float *)half.data + half.rows * COLS;
    CHECK(mmrt_program_add_weight(program, &half, &output, &error) == MMRT_OK);
    CHECK(mmrt_program_add_buffer(program, COLS, 1, &buffer, &error) == MMRT_OK);
    mmrt_op embed = {.kind = MMRT_OP_EMBED,
                     .in = -1,
                     .out = buffer,
                     .stream = -1,
                     .weights = {embedding, -1, -1},
                     .biases = {-1, -1, -1},
                     .scales = {1, 1, 1},
                     .rope = -1,
                     .scale = 1};
    mmrt_op logits = embed;
    logits.kind = MMRT_OP_LOGITS;
    logits.outputs_only = true;
    logits.in = buffer;
    logits.out = -1;
    logits.weights[0] = output;
    logits.outputs_only = true;
    CHECK_STATUS(mmrt_program_add_op(program, &embed, &error), MMRT_OK, &error, "");
    CHECK_STATUS(mmrt_program_add_op(program, &logits, &error), MMRT_OK, &error, "");
    CHECK_STATUS(mmrt_program_finish(program, N_THREADS, &error), MMRT_OK, &error, "");
    return program;
}

static void test_running_a_program(mmrt_pool *pool) {
    float *logits = malloc(ROWS / 2 * sizeof *logits);
    int faults = 0;
    for (useconds_t round = 0; round < 20; round++) {
        make_file((size_t)ROWS * COLS * sizeof(float), true);
        mmrt_mapping *mapping = map();
        mmrt_state_store *store;
        mmrt_state *state;
        mmrt_error error = {0};
        CHECK(mmrt_state_store_create(&LAYER, 1, &store, &error) == MMRT_OK);
        mmrt_program *program = make_program(mapping, store);
        CHECK(mmrt_state_create(store, &state, &error) == MMRT_OK);
        mmrt_state_store_free(store);
        useconds_t delay = round * 300;
        pthread_t cutter;
        CHECK(pthread_create(&cutter, NULL, cut_soon, &delay) == 0);
        mmrt_status status;
        uint64_t steps = 0;
        do {
            const int32_t token = (int32_t)(steps % 7);
            status = mmrt_program_run(program, pool, &(mmrt_part){state, 1, 1, false}, 1, &token,
                                      NULL, logits, NULL, 0, NULL, NULL, NULL, &error);
            for (int r = 0; status == MMRT_OK && r < ROWS / 2; r++)
                CHECK(logits[r] == COLS);
            steps += status == MMRT_OK;
        } while (status == MMRT_OK);
        CHECK(status == MMRT_IO && strstr(error.message, path));
        CHECK(strstr(error.message, "tensor embedding: ") ||
              strstr(error.message, "tensor output: "));
        CHECK(mmrt_state_length(state) == steps);
        pthread_join(cutter, NULL);
        mmrt_program_free(program);
        mmrt_state_free(state);
        faults += mmrt_mapping_check(mapping, 0, 0, NULL, NULL) != MMRT_OK;
        mmrt_mapping_close(mapping);
    }
    CHECK(faults > 0);
    free(logits);
}

/* ---- many mappings, many threads ---- */

static atomic_bool stop;

static void *open_and_close(void *unused) {
    (void)unused;
    while (!atomic_load(&stop)) {
        mmrt_mapping *mappings[5];
        for (int i = 0; i < 5; i++)
            mappings[i] =
                map_with(&(mmrt_map_request){.path = "/proc/self/exe", .fd = -1, .length = 1});
        for (int i = 0; i < 5; i++)
            mmrt_mapping_close(mappings[i]);
    }
    return NULL;
}

static void *touch_all(void *mapping) {
    for (size_t i = 0; i < N_PAGES; i++)
        CHECK(byte_at(mapping, i * page) == 0);
    return NULL;
}

static void test_faults_while_others_map(void) {
    pthread_t mappers[2], readers[N_THREADS];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&mappers[i], NULL, open_and_close, NULL) == 0);
    for (int round = 0; round < 50; round++) {
        make_file(N_PAGES * page, false);
        mmrt_mapping *mapping = map();
        mmrt_error error;
        CHECK(truncate(path, 0) == 0);
        for (int i = 0; i < N_THREADS; i++)
            CHECK(pthread_create(&readers[i], NULL, touch_all, mapping) == 0);
        for (int i = 0; i < N_THREADS; i++)
            pthread_join(readers[i], NULL);
        CHECK_STATUS(mmrt_mapping_check(mapping, 0, 0, NULL, &error), MMRT_IO, &error, "cut to 0");
        mmrt_mapping_close(mapping);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(mappers[i], NULL);
}

/* ---- signals that are not ours ---- */

static sigjmp_buf after_fault;
static volatile sig_atomic_t n_handled;

static void jump_out(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    n_handled++;
    if (info->si_code > 0)
        siglongjmp(after_fault, 1);
}

/* Touches a page of a file that is mapped without our knowing, and gone. */
static void fault_elsewhere(void) {
    make_file(2 * page, false);
    int fd = open(path, O_RDONLY);
    volatile unsigned char *bytes = mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    CHECK(bytes != MAP_FAILED && truncate(path, 0) == 0);
    (void)bytes[page];
}

static void handle_with(void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_flags = flags};
    action.sa_sigaction = handler;
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
}

/* A handler that was there before gets them; one that comes later is kept in front of ours until
 * the next reading begins, and gets them too. */
static int others_handle_theirs(void) {
    for (volatile int round = 1; round <= 2; round++) {
        handle_with(jump_out, SA_SIGINFO);
        make_file(N_PAGES * page, false);
        mmrt_mapping *mapping = map();
        CHECK(truncate(path, 0) == 0 && byte_at(mapping, 0) == 0); /* ours */
        CHECK(n_handled == 2 * (round - 1));
        if (sigsetjmp(after_fault, 1) == 0)
            fault_elsewhere();
        CHECK(n_handled == 2 * round - 1);
        raise(SIGBUS);
        CHECK(n_handled == 2 * round);
        mmrt_mapping_close(mapping);
    }
    return check_result();
}

/* As Python's faulthandler does: puts the handler before it back, and raises the signal again. */
static struct sigaction before;

static void say_and_raise(int number, siginfo_t *info, void *context) {
    (void)info, (void)context;
    if (n_handled++ < 5)
        sigaction(number, &before, NULL);
    else
        _exit(99); /* going round in circles */
    raise(number);
}

static int a_handler_that_comes_between(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_DFL, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping *first = map();
    sigaction(SIGBUS, NULL, &before);
    handle_with(say_and_raise, SA_SIGINFO | SA_NODEFER);
    mmrt_mapping *second = map(); /* puts ours in front again */
    mmrt_mapping_close(first);
    mmrt_mapping_close(second);
    fault_elsewhere();
    return 1;
}

/* The same when no other mapping is made: the file is read by a view that was there. It says so
 * once, and the read goes on. */
static int a_handler_that_comes_last(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_DFL, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping *mapping = map();
    sigaction(SIGBUS, NULL, &before);
    handle_with(say_and_raise, SA_SIGINFO | SA_NODEFER);
    n_handled = 0;
    CHECK(truncate(path, (off_t)(2 * page)) == 0 && byte_at(mapping, 5 * page) == 0);
    CHECK(n_handled == 1);
    mmrt_error error;
    CHECK(mmrt_mapping_check(mapping, 0, 0, NULL, &error) == MMRT_IO);
    /* And once ours is in front again, it says nothing. */
    handle_with(say_and_raise, SA_SIGINFO | SA_NODEFER);
    mmrt_guard_renew();
    CHECK(truncate(path, 0) == 0 && byte_at(mapping, page) == 0 && n_handled == 1);
    mmrt_mapping_close(mapping);
    return check_result();
}

static int default_fault(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_DFL, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping_close(map());
    fault_elsewhere();
    return 1;
}

static int default_raise(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_DFL, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping_close(map());
    raise(SIGBUS);
    return 1;
}

static int ignored_raise(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_IGN, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping_close(map());
    raise(SIGBUS);
    return 0;
}

static int ignored_fault(void) {
    handle_with((void (*)(int, siginfo_t *, void *))(void (*)(void))SIG_IGN, 0);
    make_file(N_PAGES * page, false);
    mmrt_mapping_close(map());
    fault_elsewhere(); /* which cannot be ignored */
    return 1;
}

/* How a child ends that runs `work`. */
static int end_of(int (*work)(void)) {
    int status = -1;
    pid_t child = fork();
    if (child == 0)
        _exit(work());
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return status;
}

static bool died_of_sigbus(int (*work)(void)) {
    const int status = end_of(work);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s SCRATCH_FILE\n", argv[0]);
        return 2;
    }
    path = argv[1];
    page = (size_t)sysconf(_SC_PAGESIZE);
    CHECK(end_of(others_handle_theirs) == 0);
    CHECK(died_of_sigbus(a_handler_that_comes_between));
    CHECK(end_of(a_handler_that_comes_last) == 0);
    CHECK(died_of_sigbus(default_fault) && died_of_sigbus(default_raise));
    CHECK(died_of_sigbus(ignored_fault) && end_of(ignored_raise) == 0);

    test_touching_what_is_gone();
    test_cut_within_a_page();
    test_part_of_a_file();
    test_writing_to_what_is_gone();
    test_faults_while_others_map();
    mmrt_pool *pool;
    mmrt_error error;
    CHECK_STATUS(mmrt_pool_create(N_THREADS, &pool, &error), MMRT_OK, &error, "");
    test_multiplying(pool);
    test_running_a_program(pool);
    mmrt_pool_free(pool);
    unlink(path);
    return check_result();
}
