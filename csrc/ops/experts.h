/* The experts that the tokens of a step have chosen.
 *
 * ROUTE leaves for each token the numbers of its experts and their weights. What follows works on
 * columns, one for each token and each of its experts, sorted by expert and within that by token:
 * those of one expert are multiplied with its matrices together. */
#ifndef MMRT_OPS_EXPERTS_H
#define MMRT_OPS_EXPERTS_H

#include "graph/program.h"
#include "step/step.h"

struct expert_order {
    uint32_t n_active;
    const uint32_t *active; /* [n_active]: experts that some token has chosen */
    const uint32_t
        *first; /* [n_experts + 1]: an expert's columns begin here, the next one's after */
    const uint32_t *column; /* [tokens][n_used]: where each choice lies */
};

/* As of this operation's tokens; every thread finds it for itself, in its scratch. Where experts
 * are read when they are wanted, those active are in the order in which they come. */
struct expert_order mmrt_expert_order(const struct worker *w, uint32_t n_experts, void *scratch);
size_t mmrt_expert_order_bytes(const mmrt_program *program, const mmrt_op *op, uint32_t n_experts);

/* Wants the experts that the tokens of this layer have chosen: `order` is rising. By one thread, in
 * an operation before those that multiply with them. */
void mmrt_want_experts(const struct worker *w, const struct expert_order *order);

/* The expert number `i` of a token, in the order of their scores, and its weight. */
static inline uint32_t chosen_expert(const struct worker *w, size_t token, int32_t i) {
    return (uint32_t)row_at(columns_at(w->step, w->op->choices), token)[i];
}

static inline float chosen_weight(const struct worker *w, size_t token, int32_t i) {
    return row_at(columns_at(w->step, w->op->choices), token)[w->op->n_used + i];
}

/* Whether `choices` is what ROUTE wrote for so many experts of each token. */
mmrt_status mmrt_check_choices(const mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* Whether weight `i` of the operation is a stack of matrices of this shape, one for each expert,
 * with a bias for each row and a scale for each matrix, if any. */
mmrt_status mmrt_check_stack(const mmrt_program *program, const mmrt_op *op, int i, uint64_t rows,
                             uint64_t cols, mmrt_error *err);

/* Rows [first, first + n_rows) of matrix `expert` of the operation's stack `i` times its columns,
 * from `column` on, n of them: y[c * y_stride + r], scaled, with the bias. False: the step ends
 * with this operation, for the rows did not come. */
bool mmrt_expert_multiply(struct worker *w, int i, uint32_t expert, uint64_t first, uint64_t n_rows,
                          const struct mmrt_columns *x, size_t column, size_t n, float *y,
                          size_t y_stride, void *scratch);

#endif
