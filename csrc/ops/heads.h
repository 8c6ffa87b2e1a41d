/* Heads of attention in buffers: for each token the query heads, then the key heads, then the value
 * heads. Attention reads, and writes, heads that are whole groups of vectors: ROPE copies others to
 * a buffer where each has room for that, with zeros behind its elements. Zeros add nothing to a
 * score, and what comes of values that are zero is left out by JOIN. */
#ifndef MMRT_OPS_HEADS_H
#define MMRT_OPS_HEADS_H

#include "graph/program.h"

/* Whether the operation's layer and heads are those of a program with such keys and values, and
 * `in` holds all of its heads of `in_dim` elements each, `out` n_out of them with room. */
mmrt_status mmrt_check_heads(const mmrt_program *program, const mmrt_op *op, uint64_t in_dim,
                             uint64_t n_out, mmrt_error *err);

#endif
