/* Whose something is: that of the process which made it, or of a forked child which has taken its
 * copy over. */
#ifndef MMRT_BASE_OWNER_H
#define MMRT_BASE_OWNER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

/* A fork copies memory as other threads have it at that instant, and not the threads. This is all
 * that outlives a call or that another thread can see during one: who changes it, and what a child
 * does with its copy. Whoever adds to it keeps to one of these ways.
 *
 * - A step (struct step, its runs and sections_done): its own threads. A child does not reach it:
 * it lives and ends with the call of the parent's thread.
 * - A program's scratch, in_order, wanted, recent, columns.last and rope tables: the one step that
 * holds the pool or the stream's pass. A step writes them before it reads them, in a child too.
 * - A program's row_scratch: the threads of a step, and the disk, for which a child must not share
 * its pages: there they are zeros.
 * - A pool's threads, events and mutex: who holds `busy`. A child makes them anew at its first job.
 * Its CPUs are whole at every instant, the old ones or the new.
 * - A stream's ring, cache, slots, threads, unit states, counts and mutexes: under its locks. A
 * child builds them anew from the plan, whatever part of a new plan it finds.
 * - A stream's reader and files: who holds `pass`. Amid a change the reader is MAPPED.
 * - A store of neurons, its slots, threads and mutex: under its lock, or by who holds `pass`. A
 * child forgets what is in memory.
 * - A stream's statistics: who holds `lock`. A child goes on counting.
 * - What sequences hold (tables, pages, blocks, and who holds them): who holds the lock of store.c,
 * which a fork takes. A child finds all of them whole, each of the old length or the new.
 * - Guards and SIGBUS handlers: whoever takes a slot, by compare-and-exchange. One that was
 * changing guards nothing in a child, where nobody has its mapping. What a mapping has lost is
 * noted by the handler, and is lost in a child too.
 *
 * And in the bindings:
 *
 * - Calls that are in an object (running, busy, a Mapping's calls): under the GIL. They count for
 * the process that noted them: see _calls.pxd.
 * - A Cache's tokens: its step, once the core is done. Where a child first uses a cache that was in
 * a step, keys and tokens are cut to where the step began.
 * - The lock of a budget, and the steps that count in it: a child makes the lock anew, and forgets
 * steps of other threads, by os.register_at_fork.
 * - A tokenizer and compiled templates: set once, without a lock.
 */

/* True if this process has to make the thing its own, and then to call mmrt_owner_set: another
 * process owned it. Of several threads the first is told so; others wait for it. */
static inline bool mmrt_owner_changes(atomic_int *owner) {
    const int process = getpid();
    int now;
    while ((now = atomic_load(owner)) != process) {
        if (now == -process) /* another thread is at it */
            sched_yield();
        else if (atomic_compare_exchange_strong(owner, &now, -process))
            return true;
    }
    return false;
}

/* Ends the change; failed: the next caller is to try again. */
static inline void mmrt_owner_set(atomic_int *owner, bool failed) {
    atomic_store(owner, failed ? 0 : getpid());
}

static inline bool mmrt_is_owner(const atomic_int *owner) {
    return atomic_load(owner) == getpid();
}

#endif
