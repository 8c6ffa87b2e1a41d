/* Threads of a pool on the CPUs of memory nodes. */
#include "map/numa.h"

#include "base/status.h"

#include <stdlib.h>

mmrt_status mmrt_numa_bind_pool(mmrt_pool *pool, int *nodes, mmrt_error *err) {
    struct plan {
        mmrt_numa_topology topology;
        mmrt_set cpus[MMRT_MAX_THREADS];
    } *plan = malloc(sizeof *plan);
    if (!plan)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for the CPUs of a pool");
    mmrt_numa_topology *topology = &plan->topology;
    mmrt_status status = mmrt_numa_topology_read(NULL, topology, err);
    if (status) {
        free(plan);
        return status;
    }

    const mmrt_set mine = mmrt_cpu_affinity();
    const int n_threads = mmrt_pool_threads(pool);
    int n_usable = 0, n_cpus = 0;
    mmrt_numa_node *usable[MMRT_MAX_NODES];
    for (int i = 0; i < topology->n_nodes; i++) {
        mmrt_numa_node *node = &topology->nodes[i];
        node->cpus = mmrt_set_both(&node->cpus, &mine);
        if (mmrt_set_count(&node->cpus) && mmrt_set_has(&topology->allowed, node->id)) {
            usable[n_usable++] = node;
            n_cpus += mmrt_set_count(&node->cpus);
        }
    }
    for (int thread = 0, i = 0, passed = 0; thread < n_threads && n_usable; thread++) {
        /* The middle of the thread's share of all CPUs, counted node by node, is on its node. */
        const int seat = (int)((2 * (int64_t)thread + 1) * n_cpus / (2 * n_threads));
        while (seat >= passed + mmrt_set_count(&usable[i]->cpus))
            passed += mmrt_set_count(&usable[i++]->cpus);
        plan->cpus[thread] = usable[i]->cpus;
        nodes[thread] = usable[i]->id;
    }
    for (int thread = 0; thread < n_threads && !n_usable; thread++)
        nodes[thread] = topology->nodes[0].id;
    if (n_usable > 1)
        status = mmrt_pool_bind(pool, plan->cpus, err);
    free(plan);
    return status;
}
