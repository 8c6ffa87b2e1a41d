/* The chosen experts' last matrices, each times its own columns. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/experts.h"
#include "step/rows.h"

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_choices(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_stack(program, op, 0, width_of(program, op->out),
                                  width_of(program, op->in), err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (status)
        return status;
    if (program->buffers[op->in].per_token != (uint32_t)op->n_used ||
        program->buffers[op->out].per_token != (uint32_t)op->n_used)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_read_of_any(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    const uint32_t n_experts = program->buffers[op->choices].n_experts;
    return MMRT_MATMUL_SCRATCH + mmrt_expert_order_bytes(program, op, n_experts);
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *down = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const struct expert_order order =
        mmrt_expert_order(w, (uint32_t)down->stack, (uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH);
    const uint64_t at_a_time = mmrt_rows_at_a_time(down, down->rows * order.n_active);
    const uint64_t pieces = (down->rows + at_a_time - 1) / at_a_time; /* of an expert */
    uint64_t piece;
    pieces_begin(w, order.n_active * pieces);
    while (pieces_next(w, &piece)) {
        const uint32_t expert = order.active[piece / pieces];
        const size_t column = order.first[expert], n = order.first[expert + 1] - column;
        const uint64_t first = piece % pieces * at_a_time, left = down->rows - first;
        if (!mmrt_expert_multiply(w, 0, expert, first, left < at_a_time ? left : at_a_time, in,
                                  column, n, row_at(out, column) + first, out->k, w->scratch))
            return;
    }
}

const struct op_info mmrt_op_expert_down = {
    .name = "expert_down",
    .roles = {STACK},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
