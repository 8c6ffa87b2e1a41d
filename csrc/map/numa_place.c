/* Bringing parts of a file into the memory of chosen nodes.
 *
 * The policy of the thread that reads a page in decides from which node the page cache takes it,
 * whether a fault reads the page or the read-ahead that a fault starts; the policy of the mapping
 * (mbind) has no effect. So each node has a thread, which runs there, takes memory there and reads
 * that node's ranges. Read-ahead by faults is off during this, because it would read past a range's
 * ends; announcing a range (WILLNEED) still reads all of it in large requests. */
#define _GNU_SOURCE
#include "map/mapping.h"
#include "map/numa.h"

#include "base/status.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Bytes that are mapped and checked at once; the disk is a chunk ahead. */
enum { CHUNK_BYTES = 16 << 20 };

struct placing {
    mmrt_mapping *mapping;
    mmrt_numa_range *ranges; /* of all nodes */
    size_t n_ranges;
    bool several_nodes; /* else there is no choice, and policies need not even be known here */
    atomic_bool stop;
    sem_t done; /* counts the readers that have ended */
};

/* One node's thread. */
struct reader {
    struct placing *placing;
    const mmrt_numa_node *node;
    pthread_t thread;
    mmrt_status status;
    mmrt_error error;
};

/* Makes the calling thread run on `node` and take memory there. */
static mmrt_status settle(const mmrt_numa_node *node, mmrt_error *err) {
    const mmrt_set mine = mmrt_cpu_affinity(), cpus = mmrt_set_both(&mine, &node->cpus);
    const bool there =
        mmrt_set_count(&cpus) && sched_setaffinity(0, sizeof cpus, (const cpu_set_t *)&cpus) == 0;
    mmrt_numa_policy policy = {.mode = MMRT_NUMA_PREFERRED};
    mmrt_set_add(&policy.nodes, node->id);
    mmrt_status status = mmrt_numa_set_policy(&policy, err);
    /* Where policies are forbidden, memory still comes from the node that a thread runs on. */
    return status == MMRT_UNSUPPORTED && there ? MMRT_OK : status;
}

/* Where the chunk that holds byte `at` of the range ends. No page is in two chunks. */
static uint64_t chunk_end(const mmrt_numa_range *range, uint64_t at) {
    const uint64_t next = (at / CHUNK_BYTES + 1) * CHUNK_BYTES, end = range->offset + range->length;
    return next < end ? next : end;
}

/* Maps a chunk that has been announced, and sees to it that it lies right. */
static mmrt_status place_chunk(const struct placing *p, mmrt_numa_range *range, uint64_t offset,
                               uint64_t length, mmrt_error *err) {
    mmrt_status status =
        mmrt_mapping_advise(p->mapping, offset, length, MMRT_ADVICE_POPULATE_READ, err);
    if (status)
        return status;
    const char *start = (const char *)mmrt_mapping_data(p->mapping) + offset;
    const uint64_t n_pages = mmrt_numa_n_pages(start, length);
    range->n_pages += n_pages;
    if (!p->several_nodes) {
        range->n_there += n_pages;
        return MMRT_OK;
    }
    /* Pages that were in memory before lie where they were first read. */
    status = mmrt_numa_move(start, length, range->node, &range->n_there, &range->n_elsewhere, err);
    return status == MMRT_UNSUPPORTED ? MMRT_OK : status; /* then nobody says where they lie */
}

static mmrt_status place_range(const struct placing *p, mmrt_numa_range *range, mmrt_error *err) {
    const uint64_t end = range->offset + range->length;
    mmrt_status status = MMRT_OK;
    for (uint64_t at = range->offset, announced = at; at < end && !status;) {
        if (atomic_load(&p->stop))
            return MMRT_OK;
        while (announced < end && announced - at <= CHUNK_BYTES && !status) { /* and the next */
            const uint64_t next = chunk_end(range, announced);
            status = mmrt_mapping_advise(p->mapping, announced, next - announced,
                                         MMRT_ADVICE_WILLNEED, err);
            announced = next;
        }
        if (!status)
            status = place_chunk(p, range, at, chunk_end(range, at) - at, err);
        at = chunk_end(range, at);
    }
    return status;
}

static void *reader_main(void *argument) {
    struct reader *reader = argument;
    struct placing *p = reader->placing;
    if (p->several_nodes)
        reader->status = settle(reader->node, &reader->error);
    for (size_t i = 0; i < p->n_ranges && !reader->status; i++)
        if (p->ranges[i].node == reader->node->id)
            reader->status = place_range(p, &p->ranges[i], &reader->error);
    if (reader->status)
        atomic_store(&p->stop, true);
    sem_post(&p->done);
    return NULL;
}

/* Waits for n readers, polling; true if the poll asked to stop. */
static bool wait_for(struct placing *p, int n, mmrt_poll_fn *poll, void *poll_context) {
    bool interrupted = false;
    while (n > 0) {
        struct timespec deadline;
        clock_gettime(CLOCK_REALTIME, &deadline);
        deadline.tv_nsec += 50000000;
        if (deadline.tv_nsec >= 1000000000) {
            deadline.tv_sec++;
            deadline.tv_nsec -= 1000000000;
        }
        if (sem_timedwait(&p->done, &deadline) == 0)
            n--;
        else if (poll && !interrupted && poll(poll_context)) {
            interrupted = true;
            atomic_store(&p->stop, true);
        }
    }
    return interrupted;
}

/* The nodes that ranges name, or which of them cannot be. */
static mmrt_status check_ranges(const mmrt_mapping *mapping, const mmrt_numa_topology *topology,
                                mmrt_numa_range *ranges, size_t n, mmrt_set *nodes,
                                mmrt_error *err) {
    *nodes = (mmrt_set){{0}};
    for (size_t i = 0; i < n; i++) {
        mmrt_numa_range *range = &ranges[i];
        range->n_pages = range->n_there = range->n_elsewhere = 0;
        mmrt_status status = mmrt_check_range(mapping, range->offset, range->length, err);
        if (status)
            return status;
        if (!mmrt_set_has(&topology->allowed, range->node))
            return mmrt_fail(err, MMRT_ARGUMENT,
                             "there is no node %d with memory that this process may use",
                             range->node);
        mmrt_set_add(nodes, range->node);
    }
    return MMRT_OK;
}

/* Runs a reader for each of `nodes` and waits for all of them. */
static mmrt_status run_readers(struct placing *p, const mmrt_numa_topology *topology,
                               const mmrt_set *nodes, struct reader *readers, mmrt_poll_fn *poll,
                               void *poll_context, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    int n = 0;
    for (int i = 0; i < topology->n_nodes && !status; i++) {
        if (!mmrt_set_has(nodes, topology->nodes[i].id))
            continue;
        readers[n] = (struct reader){.placing = p, .node = &topology->nodes[i]};
        int failed = pthread_create(&readers[n].thread, NULL, reader_main, &readers[n]);
        if (failed) {
            atomic_store(&p->stop, true);
            status = mmrt_fail(err, MMRT_NO_MEMORY, "cannot start a thread for node %d: %s",
                               topology->nodes[i].id, strerror(failed));
        } else
            n++;
    }
    const bool interrupted = wait_for(p, n, poll, poll_context);
    for (int i = 0; i < n; i++) {
        pthread_join(readers[i].thread, NULL);
        if (!status && readers[i].status) {
            status = readers[i].status;
            if (err)
                *err = readers[i].error;
        }
    }
    return !status && interrupted ? mmrt_fail(err, MMRT_INTERRUPTED, "interrupted") : status;
}

mmrt_status mmrt_numa_place(mmrt_mapping *mapping, mmrt_numa_range *ranges, size_t n,
                            mmrt_poll_fn *poll, void *poll_context, mmrt_error *err) {
    struct plan {
        mmrt_numa_topology topology;
        struct reader readers[MMRT_MAX_NODES];
    } *plan = malloc(sizeof *plan);
    if (!plan)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for threads that read");
    mmrt_numa_topology *topology = &plan->topology;
    mmrt_set nodes;
    mmrt_status status = mmrt_numa_topology_read(NULL, topology, err);
    if (!status)
        status = check_ranges(mapping, topology, ranges, n, &nodes, err);
    struct placing p = {
        .mapping = mapping,
        .ranges = ranges,
        .n_ranges = n,
        .several_nodes = topology->n_nodes > 1,
    };
    if (!status && p.several_nodes)
        status =
            mmrt_mapping_advise(mapping, 0, mmrt_mapping_size(mapping), MMRT_ADVICE_RANDOM, err);
    if (!status) {
        sem_init(&p.done, 0, 0);
        status = run_readers(&p, topology, &nodes, plan->readers, poll, poll_context, err);
        sem_destroy(&p.done);
    }
    free(plan);
    return status;
}
