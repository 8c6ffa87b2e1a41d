/* Where the bytes of weights come from: the pages of their mapped files, or the disk, within a
 * budget.
 *
 * A unit is a run of bytes that is read at once: whole rows of a matrix. Whoever multiplies with it
 * acquires it, and gives its rows back. Two policies stand behind that:
 *
 *   in order   Every pass uses these units, in the order of their numbers. A budget keeps a part of
 *              them on mapped pages; the others pass through a ring of slots that readers fill
 *              ahead of use, from the end of one pass on into the next.
 *   on demand  A pass says which of these it wants. Those that are not in a cache of slots are read
 *              then. Which of them stay there is decided by a score: see score.c.
 *
 * Without a budget, or with one that holds all, every unit is on mapped pages. */
#ifndef MMRT_SOURCE_SOURCE_H
#define MMRT_SOURCE_SOURCE_H

#include "mmrt.h"

typedef struct mmrt_source mmrt_source;

struct mmrt_unit {
    int32_t file;
    uint32_t rows;
    uint64_t offset;
    uint64_t bytes;
};

/* Units on demand: items of one shape, such as the experts of a layer. The units of an item, its
 * parts, are kept together; of each, the same part has the same size. */
struct mmrt_bank {
    int32_t n_items;
    int32_t n_parts;
    int32_t n_together; /* the first parts, so many, are used together, then each of the others */
    int32_t n_wanted;   /* items that are wanted at once, at least */
};

/* Copies the units: first the n_in_order that are used in order, then those on demand, part after
 * part, item after item, bank after bank. All are kept: left to faults on their mapped pages. */
mmrt_status mmrt_source_create(mmrt_mapping *const *files, int32_t n_files,
                               const struct mmrt_unit *units, int32_t n_units, int32_t n_in_order,
                               const struct mmrt_bank *banks, int32_t n_banks, mmrt_source **out,
                               mmrt_error *err);
void mmrt_source_free(mmrt_source *source);

/* Readers take what is not kept in this way; at first, MAPPED. UNSUPPORTED changes nothing. */
mmrt_status mmrt_source_set_reader(mmrt_source *source, mmrt_reader reader, mmrt_error *err);

/* Keeps as much as fits into `budget` bytes together with ring and cache, and drops from memory
 * what is no longer kept. Waits for a pass to end. NO_MEMORY, naming the smallest budget
 * that is enough, changes nothing. */
mmrt_status mmrt_source_set_budget(mmrt_source *source, uint64_t budget, mmrt_error *err);

/* No pass begins from now on until it is let go; waits for one that runs to end. */
void mmrt_source_hold(mmrt_source *source);
void mmrt_source_let_go(mmrt_source *source);

/* From now on locks what is kept when it has been loaded, as far as the process may. */
void mmrt_source_lock_kept(mmrt_source *source);

/* A dry run of set_budget. */
mmrt_status mmrt_source_plan(mmrt_source *source, uint64_t budget, mmrt_plan *plan,
                             mmrt_error *err);
int32_t mmrt_source_units(const mmrt_source *source);
void mmrt_source_kept(mmrt_source *source, uint64_t budget, bool *kept); /* [units] */
void mmrt_source_get_stats(mmrt_source *source, mmrt_stream_stats *stats);

/* A pass uses or skips every unit that is used in order, in order. One at a time: begin waits for
 * the pass before. */
mmrt_status mmrt_source_begin(mmrt_source *source, mmrt_error *err);

/* Passes may do without this unit. Before the first pass; then keep_last has those kept last. */
void mmrt_source_use_seldom(mmrt_source *source, int32_t unit);
void mmrt_source_keep_last(mmrt_source *source);

/* Of a budget, what it takes to keep the units that no pass does without. */
uint64_t mmrt_source_often(mmrt_source *source);

/* After begin: whether this pass uses such units; what is read ahead is for another like it. */
void mmrt_source_uses(mmrt_source *source, bool seldom);

void mmrt_source_end(mmrt_source *source, bool complete);

/* Whether a budget was set that does not hold all units: since then kept units are loaded
 * whole, and faults bring in single pages. */
bool mmrt_source_is_limited(const mmrt_source *source);

/* Whether these units are kept and there, so that this pass need not acquire them. */
bool mmrt_source_is_kept(const mmrt_source *source, int32_t first, int32_t end);

/* The address of a unit of this pass. Waits up to `seconds` for it (below 0: for as long as it
 * takes). NULL: it is not there yet, or the pass has ended because a read failed or it was
 * interrupted. Each of its rows is given back once, by any thread. */
const uint8_t *mmrt_source_acquire(mmrt_source *source, int32_t unit, double seconds, bool *ended);
void mmrt_source_release(mmrt_source *source, int32_t unit, uint32_t rows);

/* Items of a bank that this pass uses next. */
struct mmrt_want {
    int32_t bank;
    uint32_t *items; /* [n], rising; those that are there are moved to the front */
    size_t n;
    const uint32_t *recent; /* [n_tokens][n_each]: what the last tokens chose, in turn */
    size_t n_tokens, n_each;
};

/* All parts of these items will be asked for, in the order in which the items are then. Those that
 * are not there are read at once: first the parts that are used together. They stay until each of
 * their rows was given back. */
void mmrt_source_want(mmrt_source *source, const struct mmrt_want *want);

/* What replaces what in the cache; at first, SCORE. */
void mmrt_source_set_policy(mmrt_source *source, mmrt_policy policy);
void mmrt_source_bank_stats(mmrt_source *source, int32_t bank, mmrt_demand_stats *stats);

/* The unit whose read has failed, as mmrt_source_error says; -1: none. */
int32_t mmrt_source_failed_unit(mmrt_source *source);

/* This pass does without these units: what has not been read yet is not read. */
void mmrt_source_skip(mmrt_source *source, int32_t first, int32_t end);

/* Wakes all waiting threads; none waits again in this pass. */
void mmrt_source_interrupt(mmrt_source *source);

/* Why acquire gave NULL. */
mmrt_status mmrt_source_error(mmrt_source *source, mmrt_error *err);

/* Reads bytes that belong to no unit or to one that is not there, and leaves no trace of them in
 * memory. `scratch` has mmrt_source_read_scratch(bytes); the result points into it. */
const uint8_t *mmrt_source_read(mmrt_source *source, int32_t file, uint64_t offset, uint64_t bytes,
                                void *scratch);
uint64_t mmrt_source_read_scratch(uint64_t bytes);

/* Lets go of what the page cache holds of such bytes. */
void mmrt_source_drop(mmrt_source *source, int32_t file, uint64_t offset, uint64_t bytes);

#endif
