/* Whose something is: that of the process which made it, or of a forked child which has taken its
 * copy over. */
#ifndef MMRT_BASE_OWNER_H
#define MMRT_BASE_OWNER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

/* A fork copies memory as other threads have it at that instant, and not the threads. This is all
 * that outlives a call or that another thread can see during one, who may change it, and what a
 * child does with its copy. Whoever adds to it keeps to one of these ways.
 *
 * | what                            | changed by                | in a child |
 * |---------------------------------|---------------------------|----------------------------------|
 * | step: all of struct step, its   | the threads of the step   | not reached: the step's caller |
 * |   runs, sections_done           |                           |   owns it | | program: scratch,
 * in_order,     | a step, which holds the   | written anew by a step before it | |   columns.last,
 * rope tables     |   pool, or the pass       |   is read                        | | program:
 * row_scratch            | a step's threads          | zeros; its pages are not shared, | | | | as
 * the disk writes to them     | | pool: threads, events, busy,    | `busy`'s holder           |
 * own(): made anew                 | |   cpus                          | |   (cpus: whole, old or
 * new)      | | stream: ring, slots, threads,   | `pass`, `lock`, readers   | own(): built anew
 * from the plan, | |   states, counts, both mutexes  |                           |   whatever part
 * of it is there   | | stream: reader, files           | `pass`                    | whole, or
 * MAPPED amid a change   | | stream: stats                   | `lock`                    | goes on
 * counting                 | | kv: length, n_pages, pages      | the one step or call that | at
 * every instant a whole         | |                                 |   the sequence is in      |
 * sequence (kv.c)                | | guards, SIGBUS handlers         | compare-and-exchange;     |
 * a slot that was changing guards  | |                                 |   a slot by its taker |
 * nothing, as nobody has it      | | mapping: what was lost          | the SIGBUS handler        |
 * as in the parent                 | | Python: running, busy, calls    | the GIL; a process' own |
 * calls of the parent's threads    | |   in a Mapping (_calls.pxd)     | |   do not count | |
 * Python: a Cache's tokens        | the step, after the core  | cut to where the step began      |
 * | Python: locks of budgets        | who holds them            | made anew (os.register_at_fork) |
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
