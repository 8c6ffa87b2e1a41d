/* RMS norms of all queries, and of all keys, of a token together, in place; before ROPE. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "step/step.h"

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_layer(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (status)
        return status;
    const mmrt_layer_state *spec = &mmrt_layer_of(program, op)->spec;
    const uint64_t n_q = (uint64_t)op->n_heads, n_kv = spec->n_heads, dim = spec->k_dim;
    if (op->n_heads < 1 || op->out != op->in || width_of(program, op->in) != (n_q + 2 * n_kv) * dim)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    status = mmrt_check_vector(program, op->weights[0], n_q * dim, err);
    if (!status)
        status = mmrt_check_vector(program, op->weights[1], n_kv * dim, err);
    if (!status)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        mmrt_note_write(program, op, op->out, false);
    return status;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *q_norm = weight_at(step, w->op->weights[0]);
    const mmrt_weight *k_norm = weight_at(step, w->op->weights[1]);
    const struct mmrt_columns *heads = columns_at(step, w->op->in);
    mmrt_rms_norm_fn *const rms_norm = step->program->kernels->rms_norm;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *q = row_at(heads, t), *k = q + q_norm->cols;
        rms_norm(q, q_norm->data, w->op->eps, q, q_norm->cols);
        rms_norm(k, k_norm->data, w->op->eps, k, k_norm->cols);
    }
}

const struct op_info mmrt_op_wide_norm = {
    .name = "wide_norm",
    .roles = {VECTOR, VECTOR},
    .check = check,
    .run = run,
};
