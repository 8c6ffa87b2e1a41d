/* What the guest's tests share: its files, placing their pages on nodes and looking where they are.
 */
#ifndef GUEST_H
#define GUEST_H

#include "mmrt.h"
#include "base/pool.h"
#include "check.h"
#include "forbid.h"
#include "quant/quant.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* On the disk, an ext4: float32 numbers of which each is the number of its page, plus 1. */
static const char WEIGHTS[] = "/disk/weights";
/* There too: as large as one node, and sparse. */
static const char LARGE[] = "/disk/large";

enum { PAGE = 4096, N_PAGES = 1024 }; /* of WEIGHTS */

#define POPULATE MMRT_ADVICE_POPULATE_READ

static mmrt_error error;

#define OK(call) CHECK_STATUS(call, MMRT_OK, &error, "")

static mmrt_mapping *map(const char *path) {
    mmrt_mapping *mapping = NULL;
    OK(mmrt_mapping_open(path, &mapping, &error));
    return mapping;
}

static uint64_t resident(const mmrt_mapping *mapping, uint64_t first_page, uint64_t n) {
    unsigned char pages[N_PAGES];
    bool trusted;
    uint64_t total = 0;
    OK(mmrt_mapping_residency(mapping, first_page * PAGE, n * PAGE, pages, &trusted, &error));
    for (uint64_t i = 0; i < n; i++)
        total += pages[i];
    return total;
}

/* The file, mapped, with none of its pages in memory. */
static mmrt_mapping *map_cold(const char *path) {
    mmrt_mapping *mapping = map(path);
    OK(mmrt_mapping_advise(mapping, 0, mmrt_mapping_size(mapping), MMRT_ADVICE_EVICT, &error));
    CHECK(resident(mapping, 0, N_PAGES) == 0);
    return mapping;
}

/* How many of n pages lie on `node`; -1 counts those that are not mapped. */
static uint64_t on_node(const void *start, uint64_t n, int node) {
    static int16_t nodes[65536];
    uint64_t total = 0;
    CHECK(n <= sizeof nodes / sizeof *nodes);
    OK(mmrt_numa_pages(start, n * PAGE, nodes, &error));
    for (uint64_t i = 0; i < n; i++)
        total += nodes[i] == node;
    return total;
}

static const char *page_at(const mmrt_mapping *mapping, uint64_t page) {
    return (const char *)mmrt_mapping_data(mapping) + page * PAGE;
}

/* The calling thread runs on the CPU of `node`, whose number is the node's, or with -1 on any. */
static void run_on(int node) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int cpu = 0; cpu < 2; cpu++)
        if (node < 0 || cpu == node)
            CPU_SET(cpu, &cpus);
    CHECK(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
}

static void set_policy(mmrt_numa_mode mode, int node) {
    mmrt_numa_policy policy = {.mode = mode};
    if (node >= 0)
        mmrt_set_add(&policy.nodes, node);
    OK(mmrt_numa_set_policy(&policy, &error));
}

static mmrt_numa_range range(uint64_t first_page, uint64_t n, int node) {
    return (mmrt_numa_range){.offset = first_page * PAGE, .length = n * PAGE, .node = node};
}

static void place(mmrt_mapping *mapping, mmrt_numa_range *ranges, size_t n) {
    OK(mmrt_numa_place(mapping, ranges, n, NULL, NULL, &error));
    for (size_t i = 0; i < n; i++) {
        const uint64_t first = ranges[i].offset / PAGE, pages = ranges[i].length / PAGE;
        CHECK(ranges[i].n_pages == pages && ranges[i].n_there == pages && !ranges[i].n_elsewhere);
        CHECK(on_node(page_at(mapping, first), pages, ranges[i].node) == pages);
    }
}

static void check_content(const mmrt_mapping *mapping) {
    for (uint64_t i = 0; i < N_PAGES; i++)
        CHECK(*(const float *)(const void *)page_at(mapping, i) == (float)(i + 1));
}

/* Does `work` in a process of its own, and CHECKs there count here. */
static void in_child(void (*work)(void)) {
    int status = 1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        work();
        _exit(check_result());
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

#endif
