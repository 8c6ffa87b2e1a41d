/* Heads of attention in buffers: for each token the query heads, then the key heads, then the value
 * heads. Attention reads, and writes, heads that are whole groups of vectors: ROPE copies others to
 * a buffer where each has room for that, with zeros behind its elements. Zeros add nothing to a
 * score, and what comes of values that are zero is left out by JOIN. */
#ifndef MMRT_OPS_HEADS_H
#define MMRT_OPS_HEADS_H

#include "graph/program.h"

/* What the operation's layer keeps; NULL: the program has no such layer. */
static inline const struct mmrt_state_layer *mmrt_layer_of(const mmrt_program *program,
                                                           const mmrt_op *op) {
    return mmrt_state_layer_at(program->store, (uint32_t)op->layer);
}

/* Elements that each of its heads takes, with room. */
static inline uint32_t mmrt_head_room(const struct mmrt_state_layer *layer) {
    return mmrt_key_room(&layer->spec);
}

/* Likewise of what attention gives for each. */
static inline uint32_t mmrt_result_room(const struct mmrt_state_layer *layer) {
    return mmrt_value_room(&layer->spec);
}

/* Heads of keys that buffers hold for the layer: none, if it reads those of another. */
static inline uint32_t mmrt_own_heads(const struct mmrt_state_layer *layer) {
    return layer->spec.kind == MMRT_STATE_PAGES ? layer->spec.n_heads : 0;
}

/* Whether the operation's layer has pages, its own or another's, whose keys are as wide as values:
 * then a head is of one width, wherever it is. */
mmrt_status mmrt_check_layer(const mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* Whether the operation's heads go with those of its layer, which was checked before, and `in`
 * holds n_in heads of `in_dim` elements each, `out` n_out of them with room. */
mmrt_status mmrt_check_heads(const mmrt_program *program, const mmrt_op *op, uint64_t in_dim,
                             uint64_t n_in, uint64_t n_out, mmrt_error *err);

#endif
