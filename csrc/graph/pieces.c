#include "graph/pieces.h"

#include "base/share.h"

struct pieces mmrt_pieces_of(const mmrt_program *program, const mmrt_op *op) {
    const bool side_by_side = mmrt_op_info(op->kind)->side_by_side;
    struct pieces p = {.n_weights = 0};
    uint64_t all = 0;
    for (; p.n_weights < 3 && has_role(op, p.n_weights, MATRIX); p.n_weights++)
        all += program->weights[op->weights[p.n_weights]].rows;
    for (int i = 0; i < p.n_weights; i++) {
        const mmrt_weight *weight = &program->weights[op->weights[i]];
        p.rows[i] = side_by_side ? MMRT_ROWS_SIDE_BY_SIDE : mmrt_rows_at_a_time(weight, all);
        p.n[i] = (weight->rows + p.rows[i] - 1) / p.rows[i];
        p.total = side_by_side ? p.n[i] : p.total + p.n[i];
    }
    return p;
}

bool mmrt_program_shares(const mmrt_program *program, int32_t weight, int n_threads,
                         uint64_t *first_rows) {
    for (int32_t i = program->n_ops - 1; i >= 0; i--) {
        const mmrt_op *op = &program->ops[i];
        const struct pieces p = mmrt_pieces_of(program, op);
        uint64_t before = 0; /* pieces of the weights before this one */
        int k = 0;
        for (; k < p.n_weights && op->weights[k] != weight; k++)
            if (!mmrt_op_info(op->kind)->side_by_side)
                before += p.n[k];
        if (k < p.n_weights) {
            const uint64_t rows = program->weights[weight].rows;
            for (int thread = 0; thread <= n_threads; thread++) {
                const uint64_t piece = mmrt_share_first(p.total, thread, n_threads);
                const uint64_t row = piece < before ? 0 : (piece - before) * p.rows[k];
                first_rows[thread] = row < rows ? row : rows;
            }
            return true;
        }
    }
    return false;
}
