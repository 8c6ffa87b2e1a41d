/* Memory nodes as far as a machine of one can show: an empty folder is the only argument. What
 * needs two is in tests/numa/guest.c. */
#define _GNU_SOURCE
#include "mmrt.h"
#include "base/pool.h"
#include "check.h"
#include "forbid.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static mmrt_error error;
static const char *scratch;

/* ---- topology ---- */

static char root[4096]; /* a folder like /sys/devices/system/node */

static void new_root(void) {
    static int n;
    snprintf(root, sizeof root, "%s/root%d", scratch, n++);
    CHECK(mkdir(root, 0700) == 0);
}

__attribute__((format(printf, 1, 3))) static void put(const char *name_format, const char *text,
                                                      ...) {
    char name[64], path[8192];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(name, sizeof name, name_format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s/%s", root, name);
    if (strchr(name, '/')) {
        char folder[8192];
        snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
        mkdir(folder, 0700);
    }
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0);
    if (file)
        fclose(file);
}

static mmrt_numa_topology t;

static mmrt_status read_root(void) {
    memset(&t, 0xff, sizeof t);
    return mmrt_numa_topology_read(root, &t, &error);
}

static void test_topology(void) {
    new_root();
    put("online", "0,2-3\n");
    put("node0/cpulist", "0-1,4\n");
    put("node0/meminfo", "Node 0 MemTotal:      2048 kB\nNode 0 MemFree:        1024 kB\n");
    put("node0/distance", "10 21 32\n");
    put("node2/cpulist", "2-3\n"); /* CPUs alone */
    put("node2/distance", "21 10\n");
    put("node3/cpulist", "\n"); /* memory alone */
    put("node3/meminfo", "Node 3 MemTotal: 4096 kB\nNode 3 MemFree: 0 kB\n");
    CHECK_STATUS(read_root(), MMRT_OK, &error, "");
    CHECK(t.n_nodes == 3 && t.nodes[0].id == 0 && t.nodes[1].id == 2 && t.nodes[2].id == 3);
    CHECK(mmrt_set_count(&t.nodes[0].cpus) == 3 && mmrt_set_has(&t.nodes[0].cpus, 4));
    CHECK(t.nodes[0].total == 2 << 20 && t.nodes[0].free == 1 << 20);
    CHECK(t.nodes[0].distances[2] == 32 && t.nodes[1].distances[1] == 10);
    CHECK(t.nodes[1].distances[2] == 0 && t.nodes[1].total == 0);
    CHECK(mmrt_set_count(&t.nodes[2].cpus) == 0 && t.nodes[2].total == 4 << 20);
    CHECK(mmrt_set_count(&t.allowed) == 2 && !mmrt_set_has(&t.allowed, 2));
}

static void test_no_topology(void) {
    for (int i = 0; i < 2; i++) {
        new_root();
        if (i)
            put("online", "\n");
        CHECK_STATUS(read_root(), MMRT_OK, &error, "");
        CHECK(t.n_nodes == 1 && t.nodes[0].id == 0 && t.nodes[0].total > 0);
        CHECK(mmrt_set_count(&t.nodes[0].cpus) > 0 && mmrt_set_has(&t.allowed, 0));
    }
    memset(&t, 0xff, sizeof t);
    CHECK_STATUS(mmrt_numa_topology_read(NULL, &t, &error), MMRT_OK, &error, ""); /* this machine */
    CHECK(t.n_nodes >= 1 && mmrt_set_count(&t.allowed) >= 1);
}

static void test_bad_lists(void) {
    static const char *const bad[] = {
        "x",   "-1",    "1-",  "-",   "3-1",  "0,,1",   "0,",
        ",0",  "0-1-2", "0 1", "0x",  "1024", "0-1024", "99999999999999999999",
        "1;2", " 0",    "0-",  "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        new_root();
        put("online", bad[i]);
        CHECK_STATUS(read_root(), MMRT_FORMAT, &error, "is no list of numbers below 1024");
        CHECK(strstr(error.message, "/online: '") && strstr(error.message, bad[i]));
    }
    new_root();
    put("online", "0");
    put("node0/cpulist", "0-1,x");
    CHECK_STATUS(read_root(), MMRT_FORMAT, &error, "node0/cpulist: '0-1,x' is no list");
    new_root();
    put("online", "0-64");
    CHECK_STATUS(read_root(), MMRT_UNSUPPORTED, &error, "more than 64 nodes");
    put("online", "100-163");
    CHECK_STATUS(read_root(), MMRT_OK, &error, "");
    CHECK(t.n_nodes == 64 && t.nodes[63].id == 163 && mmrt_set_count(&t.allowed) == 0);
    put("node%d/distance",
        "10 20 30 40 50 60 70 80 90 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4 "
        "5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9 64 65 66",
        100);
    CHECK_STATUS(read_root(), MMRT_OK, &error, "");
    CHECK(t.nodes[0].distances[63] == 64 && t.nodes[1].distances[0] == 0);
}

/* ---- policies ---- */

static mmrt_numa_policy policy_of(mmrt_numa_mode mode, int n, ...) {
    mmrt_numa_policy policy = {.mode = mode};
    va_list nodes;
    va_start(nodes, n);
    for (int i = 0; i < n; i++)
        mmrt_set_add(&policy.nodes, va_arg(nodes, int));
    va_end(nodes);
    return policy;
}

static void test_bad_policies(void) {
    const struct {
        mmrt_numa_policy policy;
        const char *words;
    } bad[] = {
        {policy_of(MMRT_NUMA_BIND, 0), "memory policy bind takes at least one node"},
        {policy_of(MMRT_NUMA_INTERLEAVE, 0), "interleave takes at least one node"},
        {policy_of(MMRT_NUMA_PREFERRED, 0), "preferred takes at least one node"},
        {policy_of(MMRT_NUMA_PREFERRED_MANY, 0), "preferred_many takes at least one node"},
        {policy_of(MMRT_NUMA_WEIGHTED_INTERLEAVE, 0), "weighted_interleave takes at least one"},
        {policy_of(MMRT_NUMA_PREFERRED, 2, 0, 1), "preferred takes one node, not 2"},
        {policy_of(MMRT_NUMA_LOCAL, 1, 0), "local takes no nodes"},
        {policy_of(MMRT_NUMA_DEFAULT, 1, 0), "default takes no nodes"},
        {policy_of(MMRT_NUMA_BIND, 2, 0, 1023), "bind: there is no node 1023"},
        {policy_of((mmrt_numa_mode)7, 1, 0), "no memory policy number 7"},
        {policy_of((mmrt_numa_mode)-1, 0), "no memory policy number -1"},
    };
    char memory[1];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(mmrt_numa_set_policy(&bad[i].policy, &error), MMRT_ARGUMENT, &error,
                     bad[i].words);
        CHECK_STATUS(mmrt_numa_bind(memory, 1, &bad[i].policy, true, &error), MMRT_ARGUMENT, &error,
                     bad[i].words);
    }
}

/* Does `work` in a process of its own, whose CHECKs count here. */
static void in_child(void (*work)(void)) {
    int status = 1;
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        work();
        _exit(check_result());
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static const int numa_calls[] = FORBID_NUMA;
static unsigned refusal;
static const char *reason;

static void call_what_is_refused(void) {
    mmrt_numa_policy policy = policy_of(MMRT_NUMA_LOCAL, 0);
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int16_t nodes[256];
    forbid(numa_calls, 4, refusal);
    CHECK_STATUS(mmrt_numa_set_policy(&policy, &error), MMRT_UNSUPPORTED, &error, reason);
    CHECK_STATUS(mmrt_numa_bind(memory, 1 << 20, &policy, false, &error), MMRT_UNSUPPORTED, &error,
                 reason);
    CHECK_STATUS(mmrt_numa_pages(memory, 1 << 20, nodes, &error), MMRT_UNSUPPORTED, &error, reason);
    CHECK_STATUS(mmrt_numa_get_policy(&policy, &error), MMRT_UNSUPPORTED, &error, reason);
}

static void test_refusals_of_the_kernel(void) {
    refusal = EPERM, reason = "forbidden here, as in containers that lack CAP_SYS_NICE";
    in_child(call_what_is_refused);
    refusal = ENOSYS, reason = "this kernel is built without NUMA";
    in_child(call_what_is_refused);
}

/* ---- pages and files ---- */

static void test_pages(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int16_t nodes[4] = {7, 7, 7, 7};
    CHECK(mmrt_numa_n_pages(memory, 0) == 0 && mmrt_numa_n_pages(memory + 1, page) == 2);
    memory[page] = 1;
    mmrt_status status = mmrt_numa_pages(memory + page - 1, 2, nodes, &error);
    if (status == MMRT_UNSUPPORTED) /* in a container */
        return;
    CHECK(status == MMRT_OK);
    CHECK(nodes[0] == -1 && nodes[1] >= 0 && nodes[1] < 1024 && nodes[2] == 7);
    munmap(memory, 4 * page);
}

static void test_placing(void) {
    char path[4200];
    static char bytes[100000];
    snprintf(path, sizeof path, "%s/file", scratch);
    FILE *file = fopen(path, "w");
    CHECK(file && fwrite(bytes, 1, sizeof bytes, file) == sizeof bytes && fclose(file) == 0);
    mmrt_mapping *mapping;
    CHECK_STATUS(mmrt_mapping_open(path, &mapping, &error), MMRT_OK, &error, "");
    CHECK(mmrt_numa_topology_read(NULL, &t, &error) == MMRT_OK);
    int node = 0;
    while (!mmrt_set_has(&t.allowed, node))
        node++;
    mmrt_numa_range ranges[] = {{.offset = 1, .length = sizeof bytes - 1, .node = node},
                                {.offset = 5, .length = 0, .node = node}};
    mmrt_status status = mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error);
    if (status != MMRT_UNSUPPORTED) { /* before Linux 5.14 */
        CHECK(status == MMRT_OK && ranges[1].n_pages == 0);
        CHECK(ranges[0].n_pages == mmrt_mapping_pages(mapping, 1, sizeof bytes - 1));
        CHECK(t.n_nodes > 1 || ranges[0].n_there == ranges[0].n_pages);
    }
    ranges[1].node = 1023;
    CHECK_STATUS(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error), MMRT_ARGUMENT, &error,
                 "there is no node 1023");
    ranges[1].node = -1;
    CHECK_STATUS(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error), MMRT_ARGUMENT, &error,
                 "there is no node -1");
    ranges[1] = (mmrt_numa_range){.offset = 2, .length = UINT64_MAX, .node = node};
    CHECK_STATUS(mmrt_numa_place(mapping, ranges, 2, NULL, NULL, &error), MMRT_ARGUMENT, &error,
                 "outside a mapping");
    CHECK(mmrt_numa_place(mapping, ranges, 0, NULL, NULL, &error) == MMRT_OK);
    mmrt_mapping_close(mapping);
    unlink(path);
}

/* ---- threads ---- */

static mmrt_pool *pool;

static void note_cpu(void *context, int thread, int n_threads) {
    (void)n_threads;
    ((int *)context)[thread] = sched_getcpu();
}

static mmrt_set one_cpu; /* that this process may use */

static void check_threads(void) {
    int cpus[3] = {-1, -1, -1};
    CHECK(mmrt_pool_run(pool, note_cpu, cpus, &error) == MMRT_OK);
    for (int i = 0; i < 3; i++)
        CHECK(mmrt_set_has(&one_cpu, cpus[i]));
}

static void test_threads(void) {
    const mmrt_set mine = mmrt_cpu_affinity();
    mmrt_set sets[3];
    int nodes[3] = {-1, -1, -1}, cpu = MMRT_SET_LIMIT - 1;
    while (!mmrt_set_has(&mine, cpu))
        cpu--;
    mmrt_set_add(&one_cpu, cpu);
    CHECK(mmrt_pool_create(3, &pool, &error) == MMRT_OK);
    for (int i = 0; i < 3; i++)
        sets[i] = one_cpu;
    CHECK_STATUS(mmrt_pool_bind(pool, sets, &error), MMRT_OK, &error, "");
    for (int i = 0; i < 100; i++)
        check_threads();
    in_child(check_threads); /* whose threads are new */
    sets[2] = (mmrt_set){{0}};
    CHECK_STATUS(mmrt_pool_bind(pool, sets, &error), MMRT_ARGUMENT, &error,
                 "thread 2: this process may use none of its CPUs");
    check_threads();
    const mmrt_set still_mine = mmrt_cpu_affinity();
    CHECK(!memcmp(&mine, &still_mine, sizeof mine));
    mmrt_pool_free(pool);

    CHECK(mmrt_pool_create(3, &pool, &error) == MMRT_OK);
    CHECK_STATUS(mmrt_numa_bind_pool(pool, nodes, &error), MMRT_OK, &error, "");
    for (int i = 0; i < 3; i++)
        CHECK(mmrt_set_has(&t.allowed, nodes[i]));
    mmrt_pool_free(pool);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s SCRATCH_FOLDER\n", argv[0]);
        return 2;
    }
    scratch = argv[1];
    test_topology();
    test_no_topology();
    test_bad_lists();
    test_bad_policies();
    test_refusals_of_the_kernel();
    test_pages();
    test_placing();
    test_threads();
    return check_result();
}
