/* How the rows of an operation's matrices are cut into pieces, for threads to take. */
#ifndef MMRT_GRAPH_PIECES_H
#define MMRT_GRAPH_PIECES_H

#include "graph/op.h"
#include "graph/program.h"

#include <assert.h>

/* Rows of a piece of matrices that are multiplied side by side, so that their products meet while
 * both are in the cache: a whole number of quantisation groups. */
enum { MMRT_ROWS_SIDE_BY_SIDE = 64 };
static_assert(MMRT_ROWS_SIDE_BY_SIDE % MMRT_GROUP == 0, "whole groups");

/* One space of pieces for all matrices together: small ones are shared out as one. A piece of
 * matrices side by side is the same rows of each. */
struct pieces {
    int n_weights;
    uint64_t rows[3], n[3]; /* of each matrix: rows of a piece, pieces */
    uint64_t total;
};

/* The pieces of an operation whose weights are matrices. */
struct pieces mmrt_pieces_of(const mmrt_program *program, const mmrt_op *op);

/* Whether the operation has a weight `i`, and it has this role. */
static inline bool has_role(const mmrt_op *op, int i, enum weight_role role) {
    return op->weights[i] >= 0 && mmrt_op_info(op->kind)->roles[i] == role;
}

#endif
