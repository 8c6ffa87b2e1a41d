/* An operation's work in pieces, and the rows of weights for it, wherever they are. */
#ifndef MMRT_STEP_ROWS_H
#define MMRT_STEP_ROWS_H

#include "step/step.h"

/* The operation's work, in pieces that threads take until none is left. Where weights are still on
 * their way, pieces are taken in order by all threads, so that what comes first is used first. */
static inline void pieces_begin(struct worker *w, uint64_t n_pieces) {
    w->n_pieces = n_pieces;
    if (!w->in_order)
        mmrt_share_begin(w->runs, w->thread, w->n_threads, n_pieces);
}

bool mmrt_next_in_order(struct worker *w, uint64_t *piece);

static inline bool pieces_next(struct worker *w, uint64_t *piece) {
    return w->in_order ? mmrt_next_in_order(w, piece)
                       : mmrt_share_next(w->runs, w->thread, w->n_threads, piece);
}

/* Rows of a matrix from `first` on, up to the end of its unit; waits until they are there. NULL:
 * the step ends with this operation. To be given back by rows_done. */
const uint8_t *mmrt_streamed_rows(struct worker *w, int32_t weight, uint64_t first);
void mmrt_streamed_rows_done(const struct worker *w, int32_t weight, uint64_t first, uint64_t end);

static inline const uint8_t *rows_at(struct worker *w, int32_t index, uint64_t first) {
    const mmrt_weight *weight = weight_at(w->step, index);
    return w->in_order ? mmrt_streamed_rows(w, index, first)
                       : (const uint8_t *)weight->data + first * mmrt_row_bytes(weight);
}

static inline void rows_done(const struct worker *w, int32_t index, uint64_t first, uint64_t end) {
    if (w->in_order)
        mmrt_streamed_rows_done(w, index, first, end);
}

/* One row of a table, wherever it is, until this thread asks for the next. NULL as above. */
const uint8_t *mmrt_row_at(struct worker *w, int32_t weight, uint64_t row);

/* Begins a pass over the program's stream for a step of n tokens, and finds which operations are in
 * order. */
mmrt_status mmrt_rows_begin(const mmrt_program *program, uint32_t n, mmrt_error *err);

/* Whether the operation of a step of n tokens reads columns that it needs, and no rows. */
bool mmrt_reads_columns(const mmrt_program *program, int32_t op, uint32_t n);

/* No thread will read this operation's weights in this step. */
void mmrt_rows_skip(const struct worker *w);

#endif
