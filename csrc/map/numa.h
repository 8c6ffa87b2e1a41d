/* Shared by the files on memory nodes. They make the system calls directly, without libnuma. */
#ifndef MMRT_MAP_NUMA_H
#define MMRT_MAP_NUMA_H

#include "mmrt.h"

/* The failure of a call whose arguments were checked: UNSUPPORTED where the kernel has no such call
 * or forbids it, else IO with errno. `what` begins the message. */
mmrt_status mmrt_numa_refused(const char *what, mmrt_error *err);

/* The nodes whose memory this process may use; none where the kernel does not say. */
mmrt_status mmrt_numa_allowed(mmrt_set *allowed, mmrt_error *err);

/* Moves the mapped pages of a range to `node`, unless other processes map them too, and adds to
 * *n_there and *n_elsewhere how many lie there afterwards, and how many do not. */
mmrt_status mmrt_numa_move(const void *start, uint64_t length, int node, uint64_t *n_there,
                           uint64_t *n_elsewhere, mmrt_error *err);

#endif
