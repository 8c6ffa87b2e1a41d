/* What each token has, as far as a gate lets it through: out *= sigmoid(weight in). */
#include "graph/check.h"
#include "step/step.h"

#include <math.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->out, false, err);
    if (!status)
        status = mmrt_check_vector(program, op->weights[0], width_of(program, op->in), err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (!status)
        mmrt_note_write(program, op, op->out, false);
    return status;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    (void)op;
    return MMRT_MATMUL_SCRATCH + program->max_tokens * sizeof(float);
}

/* By panels even for one token, so that all are rounded alike. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    float *products = (float *)(void *)((uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    if (begin == end)
        return;
    step->program->kernels->matmul[weight->type](weight->data, mmrt_row_bytes(weight), 1,
                                                 columns_at(step, w->op->in), begin, end - begin,
                                                 products, 1, w->scratch);
    for (uint32_t t = begin; t < end; t++) {
        const float share = 1 / (1 + expf(-products[t - begin]));
        float *row = row_at(out, t);
        for (size_t i = 0; i < out->k; i++)
            row[i] *= share;
    }
}

const struct op_info mmrt_op_gate = {
    .name = "gate",
    .roles = {VECTOR},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
