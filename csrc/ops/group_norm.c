/* RMS norms of equal parts of what each token has, in place, quantised. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    const uint64_t width = width_of(program, op->in);
    if (op->out != op->in || op->n_groups < 1 || width % (uint64_t)op->n_groups)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    status = mmrt_check_vector(program, op->weights[0], width, err);
    if (!status)
        mmrt_note_write(program, op, op->out, true);
    return status;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *columns = columns_at(step, w->op->in);
    const float *norm = weight_at(step, w->op->weights[0])->data;
    const size_t dim = columns->k / (size_t)w->op->n_groups;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        for (size_t first = 0; first < columns->k; first += dim) {
            float *group = row_at(columns, t) + first;
            step->program->kernels->rms_norm(group, norm + first, w->op->eps, group, dim);
        }
        quantize_row(step, columns, t);
    }
}

const struct op_info mmrt_op_group_norm = {
    .name = "group_norm",
    .roles = {VECTOR},
    .check = check,
    .run = run,
};
