/* The tests that need several memory nodes: the first and only process of a guest that has two of
 * 128 MiB with a CPU each, see guest.py. The results go to the console, a line a test, as TAP. */
#define _GNU_SOURCE
#include "guest.h"

/* ---- the tests ---- */

#define TEST(name) static void name(void)

TEST(topology_of_two_nodes) {
    static mmrt_numa_topology t;
    OK(mmrt_numa_topology_read(NULL, &t, &error));
    CHECK(t.n_nodes == 2);
    for (int i = 0; i < t.n_nodes; i++) {
        CHECK(t.nodes[i].id == i && mmrt_set_has(&t.allowed, i));
        CHECK(mmrt_set_count(&t.nodes[i].cpus) == 1 && mmrt_set_has(&t.nodes[i].cpus, i));
        CHECK(t.nodes[i].total > 32 << 20 && t.nodes[i].free < t.nodes[i].total);
        CHECK(t.nodes[i].distances[i] == 10 && t.nodes[i].distances[1 - i] == 20);
    }
}

/* Why places are reached by threads: what a mapping's policy says does not matter to the cache. */
TEST(page_cache_follows_the_thread_not_the_mapping) {
    for (int node = 0; node < 2; node++) {
        mmrt_mapping *mapping = map_cold(WEIGHTS);
        mmrt_numa_policy other = {.mode = MMRT_NUMA_BIND};
        mmrt_set_add(&other.nodes, 1 - node);
        OK(mmrt_numa_bind((void *)(uintptr_t)mmrt_mapping_data(mapping), N_PAGES * PAGE, &other,
                          false, &error));
        run_on(node);
        OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, POPULATE, &error));
        CHECK(on_node(page_at(mapping, 0), N_PAGES, node) == N_PAGES);

        OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, MMRT_ADVICE_EVICT, &error));
        set_policy(MMRT_NUMA_BIND, 1 - node); /* it runs on the one and takes from the other */
        OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, POPULATE, &error));
        CHECK(on_node(page_at(mapping, 0), N_PAGES, 1 - node) == N_PAGES);
        set_policy(MMRT_NUMA_DEFAULT, -1);
        run_on(-1);
        mmrt_mapping_close(mapping);
    }
}

TEST(places_a_file_from_disk) {
    mmrt_mapping *mapping = map_cold(WEIGHTS);
    mmrt_numa_range ranges[] = {range(0, 300, 1), range(300, 1, 0), range(301, 99, 1),
                                range(400, N_PAGES - 400, 0)};
    place(mapping, ranges, 4);
    check_content(mapping);
    mmrt_mapping_close(mapping);
}

TEST(places_what_ends_within_pages) {
    mmrt_mapping *mapping = map_cold(WEIGHTS);
    mmrt_numa_range ranges[] = {{.offset = 100, .length = 50 * PAGE + 7, .node = 1},
                                {.offset = 60 * PAGE - 1, .length = 2, .node = 0},
                                {.offset = 80 * PAGE, .length = 0, .node = 0}};
    OK(mmrt_numa_place(mapping, ranges, 3, NULL, NULL, &error));
    CHECK(ranges[0].n_pages == 51 && ranges[1].n_pages == 2 && ranges[2].n_pages == 0);
    CHECK(on_node(page_at(mapping, 0), 51, 1) == 51 && on_node(page_at(mapping, 59), 2, 0) == 2);
    CHECK(resident(mapping, 0, N_PAGES) == 53);
    mmrt_mapping_close(mapping);
}

TEST(reads_nothing_beyond_the_ranges) {
    mmrt_mapping *mapping = map_cold(WEIGHTS);
    mmrt_numa_range ranges[] = {range(100, 100, 0), range(500, 33, 1)};
    place(mapping, ranges, 2);
    CHECK(resident(mapping, 0, N_PAGES) == 133);
    CHECK(*page_at(mapping, 700) == *page_at(mapping, 700)); /* nor do faults from now on */
    CHECK(resident(mapping, 0, N_PAGES) == 134);
    mmrt_mapping_close(mapping);
}

TEST(moves_what_lies_elsewhere) {
    mmrt_mapping *mapping = map_cold(WEIGHTS);
    for (int node = 0; node < 3; node++) {
        mmrt_numa_range ranges[] = {range(0, N_PAGES / 2, node % 2),
                                    range(N_PAGES / 2, N_PAGES / 2, 1 - node % 2)};
        place(mapping, ranges, 2);
    }
    check_content(mapping);
    mmrt_mapping_close(mapping);
}

TEST(places_a_file_in_tmpfs) {
    static float page[PAGE / sizeof(float)];
    int fd = open("/tmp/weights", O_CREAT | O_WRONLY, 0600);
    run_on(0);
    for (int i = 0; i < N_PAGES; i++) {
        page[0] = (float)(i + 1);
        CHECK(write(fd, page, PAGE) == PAGE);
    }
    close(fd);
    run_on(-1);
    mmrt_mapping *mapping = map("/tmp/weights");
    OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, POPULATE, &error));
    CHECK(on_node(page_at(mapping, 0), N_PAGES, 0) == N_PAGES); /* where its writer was */
    mmrt_numa_range ranges[] = {range(0, 100, 0), range(100, 500, 1), range(600, 100, 0),
                                range(700, N_PAGES - 700, 1)};
    place(mapping, ranges, 4);
    check_content(mapping);
    mmrt_mapping_close(mapping);
    unlink("/tmp/weights");
}

/* The page cache of other files gives way. */
TEST(places_on_a_node_that_is_full) {
    for (int node = 0; node < 2; node++) {
        static mmrt_numa_topology before, after;
        mmrt_mapping *large = map(LARGE), *mapping = map_cold(WEIGHTS);
        set_policy(MMRT_NUMA_BIND, node);
        for (uint64_t i = 0; i < mmrt_mapping_size(large) / PAGE; i++)
            CHECK(*(volatile const char *)page_at(large, i) == 0);
        set_policy(MMRT_NUMA_DEFAULT, -1);
        OK(mmrt_numa_topology_read(NULL, &before, &error));
        CHECK(before.nodes[node].free < N_PAGES * PAGE * 3);
        mmrt_numa_range all = range(0, N_PAGES, node);
        place(mapping, &all, 1);
        OK(mmrt_mapping_advise(large, 0, mmrt_mapping_size(large), MMRT_ADVICE_EVICT, &error));
        OK(mmrt_numa_topology_read(NULL, &after, &error));
        CHECK(after.nodes[node].free > before.nodes[node].free + (32 << 20));
        mmrt_mapping_close(mapping);
        mmrt_mapping_close(large);
    }
}

static mmrt_mapping *shared;

static void count_what_is_shared(void) {
    /* The parent maps these pages too, so they stay. */
    mmrt_numa_range one = range(0, 10, 1);
    OK(mmrt_numa_place(shared, &one, 1, NULL, NULL, &error));
    CHECK(one.n_pages == 10 && one.n_there == 0 && one.n_elsewhere == 10);
}

TEST(counts_pages_that_another_process_keeps) {
    shared = map_cold(WEIGHTS);
    mmrt_numa_range one = range(0, 10, 0);
    place(shared, &one, 1);
    in_child(count_what_is_shared);
    CHECK(on_node(page_at(shared, 0), 10, 0) == 10);
    mmrt_mapping_close(shared);
}

static int stop(void *context) {
    ++*(int *)context;
    return 1;
}

TEST(can_be_interrupted) {
    int polls = 0;
    mmrt_mapping *large = map(LARGE);
    mmrt_numa_range all = range(0, mmrt_mapping_size(large) / PAGE, 1);
    CHECK_STATUS(mmrt_numa_place(large, &all, 1, stop, &polls, &error), MMRT_INTERRUPTED, &error,
                 "interrupted");
    CHECK(polls == 1 && all.n_pages < all.length / PAGE);
    OK(mmrt_mapping_advise(large, 0, all.length, MMRT_ADVICE_EVICT, &error));
    mmrt_mapping_close(large);
}

TEST(refuses_what_is_not_there) {
    mmrt_mapping *mapping = map(WEIGHTS);
    mmrt_numa_range none = range(0, 1, 2), outside = range(N_PAGES, 1, 0);
    CHECK_STATUS(mmrt_numa_place(mapping, &none, 1, NULL, NULL, &error), MMRT_ARGUMENT, &error,
                 "no node 2");
    CHECK_STATUS(mmrt_numa_place(mapping, &outside, 1, NULL, NULL, &error), MMRT_ARGUMENT, &error,
                 "outside a mapping");
    mmrt_numa_policy policy = {.mode = MMRT_NUMA_BIND};
    CHECK_STATUS(mmrt_numa_set_policy(&policy, &error), MMRT_ARGUMENT, &error, "at least one node");
    mmrt_set_add(&policy.nodes, 0);
    mmrt_set_add(&policy.nodes, 2);
    CHECK_STATUS(mmrt_numa_set_policy(&policy, &error), MMRT_ARGUMENT, &error, "no node 2");
    mmrt_mapping_close(mapping);
}

/* ---- policies ---- */

static void *fresh(uint64_t n_pages) {
    void *memory =
        mmap(NULL, n_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* How many of 100 pages, touched by a thread on node 0 under the policy, are on node 1; -1 where
 * the kernel does not know it. The policy is the thread's, or the memory's. */
static int on_node_1(mmrt_numa_mode mode, int nodes, bool of_thread) {
    mmrt_numa_policy policy = {.mode = mode, .nodes = {{(uint64_t)nodes}}}, read;
    char *memory = fresh(100);
    run_on(0);
    mmrt_status status = of_thread ? mmrt_numa_set_policy(&policy, &error)
                                   : mmrt_numa_bind(memory, 100 * PAGE, &policy, false, &error);
    if (status == MMRT_UNSUPPORTED && strstr(error.message, "needs Linux"))
        return -1;
    CHECK(status == MMRT_OK);
    if (of_thread) {
        OK(mmrt_numa_get_policy(&read, &error));
        CHECK(read.mode == mode && read.nodes.bits[0] == (uint64_t)nodes);
    }
    memset(memory, 1, 100 * PAGE);
    set_policy(MMRT_NUMA_DEFAULT, -1);
    run_on(-1);
    const int found = (int)on_node(memory, 100, 1);
    CHECK(on_node(memory, 100, 0) == 100 - (uint64_t)found);
    munmap(memory, 100 * PAGE);
    return found;
}

TEST(policies_decide_where_memory_comes_from) {
    for (int of_thread = 0; of_thread < 2; of_thread++) {
        CHECK(on_node_1(MMRT_NUMA_DEFAULT, 0, of_thread) == 0);
        CHECK(on_node_1(MMRT_NUMA_LOCAL, 0, of_thread) == 0);
        CHECK(on_node_1(MMRT_NUMA_PREFERRED, 2, of_thread) == 100);
        CHECK(on_node_1(MMRT_NUMA_BIND, 2, of_thread) == 100);
        CHECK(on_node_1(MMRT_NUMA_INTERLEAVE, 3, of_thread) == 50);
        const int many = on_node_1(MMRT_NUMA_PREFERRED_MANY, 2, of_thread);
        CHECK(many == 100 || many == -1);
        const int weighted = on_node_1(MMRT_NUMA_WEIGHTED_INTERLEAVE, 3, of_thread);
        CHECK((weighted > 0 && weighted < 100) || weighted == -1);
    }
}

TEST(memory_moves_to_suit_a_policy) {
    char *memory = fresh(100);
    run_on(0);
    memset(memory, 1, 100 * PAGE);
    run_on(-1);
    mmrt_numa_policy policy = {.mode = MMRT_NUMA_BIND};
    mmrt_set_add(&policy.nodes, 1);
    OK(mmrt_numa_bind(memory + 1, 50 * PAGE, &policy, true, &error)); /* 49 whole pages */
    CHECK(on_node(memory, 1, 0) == 1 && on_node(memory + PAGE, 49, 1) == 49);
    CHECK(on_node(memory + 50 * PAGE, 50, 0) == 50);
    munmap(memory, 100 * PAGE);
}

/* ---- threads ---- */

static void note_node(void *context, int thread, int n_threads) {
    unsigned cpu, node;
    (void)n_threads;
    CHECK(syscall(SYS_getcpu, &cpu, &node, NULL) == 0);
    ((unsigned *)context)[thread] = node;
}

static void check_pool(mmrt_pool *pool, const int *nodes) {
    unsigned found[4];
    OK(mmrt_pool_run(pool, note_node, found, &error));
    for (int i = 0; i < mmrt_pool_threads(pool); i++)
        CHECK(found[i] == (unsigned)nodes[i]);
}

static mmrt_pool *pool;
static int pool_nodes[4];

static void check_pool_in_child(void) {
    check_pool(pool, pool_nodes);
}

TEST(pools_run_on_their_nodes) {
    static const int expected[4][4] = {{1}, {0, 1}, {0, 1, 1}, {0, 0, 1, 1}};
    for (int n = 1; n <= 4; n++) {
        OK(mmrt_pool_create(n, &pool, &error));
        OK(mmrt_numa_bind_pool(pool, pool_nodes, &error));
        CHECK(!memcmp(pool_nodes, expected[n - 1], (size_t)n * sizeof *pool_nodes));
        for (int i = 0; i < 3; i++)
            check_pool(pool, pool_nodes);
        in_child(check_pool_in_child);
        mmrt_set mine = mmrt_cpu_affinity(); /* lent for the job alone */
        CHECK(mmrt_set_count(&mine) == 2);
        mmrt_pool_free(pool);
    }
    run_on(1); /* one node to choose from */
    OK(mmrt_pool_create(2, &pool, &error));
    OK(mmrt_numa_bind_pool(pool, pool_nodes, &error));
    CHECK(pool_nodes[0] == 1 && pool_nodes[1] == 1);
    mmrt_pool_free(pool);
    run_on(-1);
}

/* ---- a program ---- */

enum { WIDTH = 256, HIDDEN = 512, VOCABULARY = 1024, F32 = 0, WEIGHT_ROWS = 4096 };

static mmrt_program *program;
static mmrt_state *state;
static uint64_t weight_page[6]; /* where each weight begins in WEIGHTS; a row is a quarter page */
static uint64_t weight_rows[6] = {VOCABULARY, WIDTH, 64, 64, HIDDEN, HIDDEN};

/* One layer without its attention: enough of a model to read every kind of weight. */
static void build_program(const mmrt_mapping *mapping) {
    static const char *const names[] = {"vocabulary", "q", "k", "v", "gate", "up"};
    const mmrt_layer_state layer = {.kind = MMRT_STATE_NOTHING};
    mmrt_state_store *store;
    int32_t index, x, qkv, gated;
    uint64_t page = 0;
    OK(mmrt_state_store_create(&layer, 1, &store, &error));
    OK(mmrt_program_create(MMRT_ISA_REF, 1, store, false, &program, &error));
    OK(mmrt_program_add_buffer(program, WIDTH, 1, &x, &error));
    OK(mmrt_program_add_buffer(program, WIDTH + 128, 1, &qkv, &error));
    OK(mmrt_program_add_buffer(program, HIDDEN, 1, &gated, &error));
    for (int i = 0; i < 6; i++) {
        const mmrt_weight weight = {.data = page_at(mapping, page),
                                    .type = F32,
                                    .rows = weight_rows[i],
                                    .cols = WIDTH,
                                    .name = names[i]};
        OK(mmrt_program_add_weight(program, &weight, &index, &error));
        weight_page[i] = page;
        page += weight_rows[i] / 4;
    }
    CHECK(page <= N_PAGES);
    const mmrt_op none = {.in = -1,
                          .out = -1,
                          .stream = -1,
                          .rope = -1,
                          .weights = {-1, -1, -1},
                          .biases = {-1, -1, -1},
                          .scales = {1, 1, 1}};
    mmrt_op embed = none, linear = none, glu = none, logits = none;
    embed.kind = MMRT_OP_EMBED, embed.out = x, embed.weights[0] = 0, embed.scale = 1e-3f;
    linear.kind = MMRT_OP_LINEAR, linear.in = x, linear.out = qkv;
    for (int i = 0; i < 3; i++)
        linear.weights[i] = 1 + i;
    glu.kind = MMRT_OP_GLU, glu.in = x, glu.out = gated, glu.weights[0] = 4, glu.weights[1] = 5;
    logits.kind = MMRT_OP_LOGITS, logits.in = x, logits.weights[0] = 0;
    logits.outputs_only = true;
    OK(mmrt_program_add_op(program, &embed, &error));
    OK(mmrt_program_add_op(program, &linear, &error));
    OK(mmrt_program_add_op(program, &glu, &error));
    OK(mmrt_program_add_op(program, &logits, &error));
    OK(mmrt_program_finish(program, 2, &error));
    OK(mmrt_state_create(store, &state, &error));
    mmrt_state_store_free(store);
}

/* A cold step, in which every page comes to the node of the thread that reads it: the pages that
 * then lie where mmrt_program_shares says, of all that are read. */
static double as_predicted(mmrt_mapping *mapping) {
    static float logits[VOCABULARY];
    const int32_t token = 0;
    uint64_t right = 0, all = 0;
    OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, MMRT_ADVICE_EVICT, &error));
    OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, MMRT_ADVICE_RANDOM, &error));
    const mmrt_part part = {state, 1, 1, false};
    OK(mmrt_program_run(program, pool, &part, 1, &token, NULL, logits, NULL, 0, NULL, NULL, NULL,
                        &error));
    for (int weight = 0; weight < 6; weight++) {
        uint64_t first[3];
        CHECK(mmrt_program_shares(program, weight, 2, first));
        for (int thread = 0; thread < 2; thread++) {
            const uint64_t n = (first[thread + 1] - first[thread]) / 4;
            right += on_node(page_at(mapping, weight_page[weight] + first[thread] / 4), n,
                             pool_nodes[thread]);
            all += n;
        }
    }
    return (double)right / (double)all;
}

TEST(rows_lie_where_their_threads_read_them) {
    mmrt_mapping *mapping = map(WEIGHTS);
    build_program(mapping);
    OK(mmrt_pool_create(2, &pool, &error));
    OK(mmrt_numa_bind_pool(pool, pool_nodes, &error));

    mmrt_numa_range ranges[12];
    uint64_t first[3];
    for (int i = 0; i < 6; i++) {
        CHECK(mmrt_program_shares(program, i, 2, first) && first[2] == weight_rows[i]);
        for (int t = 0; t < 2; t++)
            ranges[2 * i + t] =
                range(weight_page[i] + first[t] / 4, (first[t + 1] - first[t]) / 4, pool_nodes[t]);
    }
    place(mapping, ranges, 12);
    /* q, k and v are shared out as one: all of k and v falls to the second thread */
    CHECK(mmrt_program_shares(program, 3, 2, first) && first[1] == 0);

    /* Who is done early takes over rows of others, and a busy machine makes that happen often. */
    double best = 0;
    for (int i = 0; i < 5; i++) {
        const double part = as_predicted(mapping);
        best = part > best ? part : best;
    }
    printf("# %.0f %% of the pages lay where their threads were expected\n", 100 * best);
    CHECK(best > 0.8);
    mmrt_pool_free(pool);
    mmrt_program_free(program);
    mmrt_state_free(state);
    mmrt_mapping_close(mapping);
}

/* ---- where calls are forbidden, as in containers ---- */

static const int numa_calls[] = FORBID_NUMA; /* moving comes first, then policies */
static size_t n_forbidden;

static int first_node; /* of the first 300 pages; the rest goes to the other */
static bool hog_cpu_1; /* so that nobody runs there by chance */

static void *hog(void *unused) {
    (void)unused;
    run_on(1);
    for (volatile int i = 0;; i++)
        ;
    return NULL;
}

/* What the readers bring lies where they bring it: nothing can be moved. */
static void place_without_moving(void) {
    mmrt_mapping *mapping = map_cold(WEIGHTS);
    mmrt_numa_range ranges[] = {range(0, 300, first_node),
                                range(300, N_PAGES - 300, 1 - first_node)};
    pthread_t thread;
    if (hog_cpu_1)
        CHECK(pthread_create(&thread, NULL, hog, NULL) == 0);
    forbid(numa_calls, n_forbidden, EPERM);
    OK(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error));
    CHECK(ranges[0].n_pages == 300 && ranges[0].n_there == 0 && ranges[0].n_elsewhere == 0);
    mmrt_mapping_close(mapping);
}

static void check_placing_without_moving(void) {
    for (first_node = 0; first_node < 2; first_node++) {
        in_child(place_without_moving);
        mmrt_mapping *mapping = map(WEIGHTS);
        OK(mmrt_mapping_advise(mapping, 0, N_PAGES * PAGE, POPULATE, &error));
        CHECK(on_node(page_at(mapping, 0), 300, first_node) == 300);
        CHECK(on_node(page_at(mapping, 300), N_PAGES - 300, 1 - first_node) == N_PAGES - 300);
        mmrt_mapping_close(mapping);
    }
}

/* The one CPU that the readers may use is on the wrong node for one of them. */
TEST(readers_place_by_policy) {
    n_forbidden = 1;
    run_on(0);
    check_placing_without_moving();
    run_on(-1);
}

TEST(readers_place_by_cpu_where_policies_are_forbidden) {
    n_forbidden = 4;
    hog_cpu_1 = true;
    check_placing_without_moving();
}

static void place_by_nothing(void) {
    mmrt_mapping *mapping = map(WEIGHTS);
    mmrt_numa_range ranges[] = {range(0, 300, 1), range(300, 300, 0)};
    run_on(0);
    forbid(numa_calls, n_forbidden, EPERM);
    CHECK_STATUS(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error), MMRT_UNSUPPORTED, &error,
                 "CAP_SYS_NICE");
    mmrt_mapping_close(mapping);
}

TEST(placing_by_neither_is_refused) {
    n_forbidden = 4;
    in_child(place_by_nothing);
}

/* ---- the guest ---- */

static const struct test {
    const char *name;
    void (*run)(void);
} tests[] = {
#define RUN(name) {#name, name}
    RUN(topology_of_two_nodes),
    RUN(page_cache_follows_the_thread_not_the_mapping),
    RUN(places_a_file_from_disk),
    RUN(places_what_ends_within_pages),
    RUN(reads_nothing_beyond_the_ranges),
    RUN(moves_what_lies_elsewhere),
    RUN(places_a_file_in_tmpfs),
    RUN(places_on_a_node_that_is_full),
    RUN(counts_pages_that_another_process_keeps),
    RUN(can_be_interrupted),
    RUN(refuses_what_is_not_there),
    RUN(policies_decide_where_memory_comes_from),
    RUN(memory_moves_to_suit_a_policy),
    RUN(pools_run_on_their_nodes),
    RUN(rows_lie_where_their_threads_read_them),
    RUN(readers_place_by_policy),
    RUN(readers_place_by_cpu_where_policies_are_forbidden),
    RUN(placing_by_neither_is_refused),
};

static void start_guest(void) {
    static const char *const mounts[][2] = {
        {"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i][1], 0755);
        mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL);
    }
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(console, fd);
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("/disk", 0755);
    if (mount("/dev/nvme0n1", "/disk", "ext4", MS_RDONLY, NULL) != 0)
        printf("# cannot mount the disk: %s\n", strerror(errno));
}

int main(void) {
    const int n = sizeof tests / sizeof *tests;
    start_guest();
    printf("\n1..%d\n", n);
    for (int i = 0; i < n; i++) {
        check_failures = 0;
        tests[i].run();
        printf("%s %d - %s\n", check_failures ? "not ok" : "ok", i + 1, tests[i].name);
    }
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
