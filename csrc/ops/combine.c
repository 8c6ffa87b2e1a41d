/* What the experts of each token gave, weighted and added, the best-scored first. */
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
        status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    if (width_of(program, op->in) != width_of(program, op->out) ||
        program->buffers[op->in].per_token != (uint32_t)op->n_used)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_expert_order_bytes(program, op, program->buffers[op->choices].n_experts);
}

/* Tokens are shared out in stretches of their elements, so that one token is work for all. */
static void run(struct worker *w) {
    enum { STRETCH = 256 };
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const uint32_t n_experts = step->program->buffers[w->op->choices].n_experts;
    const struct expert_order order = mmrt_expert_order(w, n_experts, w->scratch);
    const size_t token = first_token(w), n = step->n - token;
    const size_t stretches = (out->k + STRETCH - 1) / STRETCH;
    uint64_t piece;
    pieces_begin(w, n * stretches);
    while (pieces_next(w, &piece)) {
        const size_t t = piece / stretches, first = piece % stretches * STRETCH;
        const size_t left = out->k - first, width = left < STRETCH ? left : STRETCH;
        float *sum = row_at(out, token + t) + first;
        for (size_t i = 0; i < width; i++)
            sum[i] = 0;
        for (int32_t j = 0; j < w->op->n_used; j++) {
            const size_t column = order.column[t * (size_t)w->op->n_used + (size_t)j];
            const float *from = row_at(in, column) + first;
            const float weight = chosen_weight(w, token + t, j);
            for (size_t i = 0; i < width; i++)
                sum[i] += weight * from[i];
        }
    }
}

const struct op_info mmrt_op_combine = {
    .name = "combine",
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
