/* What the files on memory nodes share. The kernel's calls are made raw: libnuma is not needed. */
#ifndef MMRT_MAP_NUMA_H
#define MMRT_MAP_NUMA_H

#include "mmrt.h"

/* The failure of a call whose arguments were checked: UNSUPPORTED where the kernel has no such call
 * or forbids it, else IO with errno. `what` begins the message. */
mmrt_status mmrt_numa_refused(const char *what, mmrt_error *err);

/* The nodes whose memory this process may use; none where the kernel does not say. */
mmrt_status mmrt_numa_allowed(mmrt_set *allowed, mmrt_error *err);

/* Moves the mapped pages of a range to `node`, but for what other processes map too, and adds to
 * *n_there and *n_elsewhere where they lie then. */
mmrt_status mmrt_numa_move(const void *start, uint64_t length, int node, uint64_t *n_there,
                           uint64_t *n_elsewhere, mmrt_error *err);

#endif
