/* Guarding mapped files against SIGBUS.
 *
 * The kernel raises SIGBUS where it cannot provide a mapped page: the file was cut short, its disk
 * failed, or there is no room for what is written. On a guarded mapping the handler puts pages of
 * zeros in the place of what is gone and notes the loss in the mapping, and the thread goes on: it
 * may hold a barrier or another's lock, so nothing can be unwound. Readers check the mapping
 * afterwards (mmrt_mapping_check). Any other SIGBUS goes to the handler that was there before.
 *
 * The handler is put in place when the first mapping is made. Others may replace it later, as
 * Python's faulthandler.enable() does: each further mapping, step and buffer puts it in front
 * again. If a view taken earlier is read before that, faulthandler writes its report; if the file
 * was cut short, the read then goes on nevertheless. */
#ifndef MMRT_MAP_GUARD_H
#define MMRT_MAP_GUARD_H

#include "mmrt.h"

#include <stdatomic.h>

/* What a mapping has lost; written by the handler. */
struct mmrt_loss {
    _Atomic uint64_t at;        /* 1 + the byte that was missed first, from the mapping's start */
    _Atomic uint64_t file_size; /* when it was missed */
    atomic_bool reported;       /* to some caller */
};

/* Begin and end guarding a mapping, which must not move in between. */
mmrt_status mmrt_guard_begin(mmrt_mapping *mapping, mmrt_error *err);
void mmrt_guard_end(mmrt_mapping *mapping);

/* The guarded mapping that holds the address, or NULL. Safe in a signal handler. The answer is
 * certain if that mapping is neither opened nor closed during the call. */
mmrt_mapping *mmrt_guard_find(const void *address);

#endif
