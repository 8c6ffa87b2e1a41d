/* Weights of which a part is kept in memory and the rest read again in each pass, ahead of use.
 *
 * A unit is a run of bytes that is read at once: whole rows of a matrix. Units are numbered in the
 * order in which a pass uses them. Kept units lie on mapped pages of the file; streamed ones pass
 * through a ring of slots that readers fill in order, from the end of one pass on into the next. */
#ifndef MMRT_STREAM_STREAM_H
#define MMRT_STREAM_STREAM_H

#include "mmrt.h"

typedef struct mmrt_stream mmrt_stream;

struct mmrt_unit {
    int32_t file;
    uint32_t rows;
    uint64_t offset;
    uint64_t bytes;
};

/* Copies the units. All of them are kept: left to faults on their mapped pages. */
mmrt_status mmrt_stream_create(mmrt_mapping *const *files, int32_t n_files,
                               const struct mmrt_unit *units, int32_t n_units, mmrt_stream **out,
                               mmrt_error *err);
void mmrt_stream_free(mmrt_stream *stream);

/* Readers take what is not kept in this way; at first, MAPPED. UNSUPPORTED changes nothing. */
mmrt_status mmrt_stream_set_reader(mmrt_stream *stream, mmrt_reader reader, mmrt_error *err);

/* Keeps as much as fits into `budget` bytes together with the ring, and drops from memory what is
 * kept no longer. Waits for a pass to end. NO_MEMORY, naming the least that would do, changes
 * nothing. */
mmrt_status mmrt_stream_set_budget(mmrt_stream *stream, uint64_t budget, mmrt_error *err);

/* From now on locks what is kept when it has been loaded, as far as the process may. */
void mmrt_stream_lock_kept(mmrt_stream *stream);

/* What that would keep, without doing it. */
mmrt_status mmrt_stream_plan(const mmrt_stream *stream, uint64_t budget, mmrt_plan *plan,
                             mmrt_error *err);
int32_t mmrt_stream_units(const mmrt_stream *stream);
void mmrt_stream_kept(const mmrt_stream *stream, uint64_t budget, bool *kept); /* [units] */
void mmrt_stream_get_stats(mmrt_stream *stream, mmrt_stream_stats *stats);

/* A pass uses every unit once, in order, or skips it. One at a time: begin waits for the pass
 * before. */
mmrt_status mmrt_stream_begin(mmrt_stream *stream, mmrt_error *err);
void mmrt_stream_end(mmrt_stream *stream, bool complete);

/* Whether a budget was set that does not hold all units: since then what is kept is loaded as a
 * whole, and faults bring in single pages. */
bool mmrt_stream_is_limited(const mmrt_stream *stream);

/* Whether these units are kept and there, so that nobody need ask for them in this pass. */
bool mmrt_stream_is_kept(const mmrt_stream *stream, int32_t first, int32_t end);

/* The address of a unit of this pass. Waits until it is there, if need be for `seconds` (below 0:
 * for as long as it takes). NULL: it is not, or the pass has ended: a read has failed, or it was
 * interrupted. Each of its rows is given back once, by whichever thread. */
const uint8_t *mmrt_stream_acquire(mmrt_stream *stream, int32_t unit, double seconds, bool *ended);
void mmrt_stream_release(mmrt_stream *stream, int32_t unit, uint32_t rows);

/* This pass does without these units: what has not been read yet is not read. */
void mmrt_stream_skip(mmrt_stream *stream, int32_t first, int32_t end);

/* Ends the waiting of all threads, and to the end of the pass they wait no more. */
void mmrt_stream_interrupt(mmrt_stream *stream);

/* Why acquire gave NULL. */
mmrt_status mmrt_stream_error(mmrt_stream *stream, mmrt_error *err);

/* Reads bytes that belong to no unit or to one that is not there, and leaves no trace of them in
 * memory. `scratch` has mmrt_stream_read_scratch(bytes); the result points into it. */
const uint8_t *mmrt_stream_read(mmrt_stream *stream, int32_t file, uint64_t offset, uint64_t bytes,
                                void *scratch);
uint64_t mmrt_stream_read_scratch(uint64_t bytes);

#endif
