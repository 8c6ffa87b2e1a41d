/* What attention gives, times the sigmoids of the gates that lie behind queries: see SPLIT. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

#include <math.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->out, false, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (status)
        return status;
    const uint64_t out = width_of(program, op->out);
    if (op->n_heads < 1 || out % (uint64_t)op->n_heads || width_of(program, op->in) < 2 * out)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct mmrt_columns *in = columns_at(w->step, w->op->in);
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    const size_t n_heads = (size_t)w->op->n_heads, dim = out->k / n_heads;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        for (size_t head = 0; head < n_heads; head++) {
            const float *gate = row_at(in, t) + (2 * head + 1) * dim;
            float *to = row_at(out, t) + head * dim;
            for (size_t i = 0; i < dim; i++)
                to[i] /= 1 + expf(-gate[i]);
        }
        quantize_row(w->step, out, t);
    }
}

const struct op_info mmrt_op_head_gate = {
    .name = "head_gate",
    .check = check,
    .run = run,
};
