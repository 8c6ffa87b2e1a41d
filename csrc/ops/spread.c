/* The heads of each token as columns of their own: those of head 0 of all tokens, then those of
 * head 1, and so on, so that each head's are multiplied with its matrix together. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    const uint64_t n = (uint64_t)op->n_heads, in = width_of(program, op->in);
    if (op->n_heads < 1 || in % n || width_of(program, op->out) > in / n ||
        program->buffers[op->out].per_token != n)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t n_heads = (size_t)w->op->n_heads, dim = in->k / n_heads;
    const size_t first = first_token(w), n = step->n - first;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (size_t t = begin; t < end; t++)
        for (size_t h = 0; h < n_heads; h++) {
            const size_t column = h * n + t - first;
            memcpy(row_at(out, column), row_at(in, t) + h * dim, out->k * sizeof(float));
            quantize_row(step, out, column);
        }
}

const struct op_info mmrt_op_spread = {
    .name = "spread",
    .check = check,
    .run = run,
};
