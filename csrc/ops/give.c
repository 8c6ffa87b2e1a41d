/* Giving the hidden rows of all tokens to the caller, where a program ends amid a model. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    if (op->outputs_only)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: GIVE works on all tokens",
                         program->n_ops);
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    program->outputs = width_of(program, op->in);
    return MMRT_OK;
}

static void run(struct worker *w) {
    struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    if (begin == end)
        return;
    const size_t n = (end - begin) * in->k;
    const float *rows = row_at(in, begin);
    float zero = 0; /* stays so unless a value is NaN or infinite */
    for (size_t i = 0; i < n; i++)
        zero += rows[i] * 0.0f;
    if (!(zero == 0))
        atomic_store(&step->not_finite, true);
    memcpy(step->logits + begin * in->k, rows, n * sizeof(float));
}

const struct op_info mmrt_op_give = {
    .name = "give",
    .check = check,
    .run = run,
};
