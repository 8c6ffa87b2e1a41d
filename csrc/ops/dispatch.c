/* Columns of tokens, once for each of their experts, sorted by expert. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/experts.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_choices(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    if (width_of(program, op->in) != width_of(program, op->out) ||
        program->buffers[op->out].per_token != (uint32_t)op->n_used)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        mmrt_note_write(program, op, op->out, true);
    return status;
}

static uint32_t experts_of(const mmrt_program *program, const mmrt_op *op) {
    return program->buffers[op->choices].n_experts;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_expert_order_bytes(program, op, experts_of(program, op));
}

/* Here the choice is known: experts that are not in memory are on their way from now on. A single
 * token goes to all of its experts as it is. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t n_used = (size_t)w->op->n_used, first = first_token(w);
    const bool single = step->n - first == 1;
    if (single && (w->thread || !step->program->units))
        return;
    const struct expert_order order =
        mmrt_expert_order(w, experts_of(step->program, w->op), w->scratch);
    if (!w->thread)
        mmrt_want_experts(w, &order);
    if (single)
        return;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const uint32_t *columns = order.column + (t - first) * n_used;
        memcpy(row_at(out, columns[0]), row_at(in, t), in->k * sizeof(float));
        quantize_row(step, out, columns[0]);
        for (size_t i = 1; i < n_used; i++)
            mmrt_columns_copy(out, columns[0], columns[i]);
    }
}

const struct op_info mmrt_op_dispatch = {
    .name = "dispatch",
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
