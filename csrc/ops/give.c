/* Giving the hidden rows of all tokens to the caller, where a program ends amid a model; several
 * give theirs side by side. */
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
    program->outputs += width_of(program, op->in);
    return MMRT_OK;
}

/* Values of a row that those before it give. */
static uint64_t given_before(const struct worker *w) {
    uint64_t n = 0;
    for (const mmrt_op *op = w->op - 1; op->kind == w->op->kind; op--) /* the first is another */
        n += width_of(w->step->program, op->in);
    return n;
}

static void run(struct worker *w) {
    struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    if (begin == end)
        return;
    const size_t n = (end - begin) * in->k, stride = step->program->outputs;
    const float *rows = row_at(in, begin);
    float zero = 0; /* stays so unless a value is NaN or infinite */
    for (size_t i = 0; i < n; i++)
        zero += rows[i] * 0.0f;
    if (!(zero == 0))
        atomic_store(&step->not_finite, true);
    float *to = step->logits + begin * stride + given_before(w);
    for (uint32_t t = begin; t < end; t++, rows += in->k, to += stride)
        memcpy(to, rows, in->k * sizeof *to);
}

const struct op_info mmrt_op_give = {
    .name = "give",
    .check = check,
    .run = run,
};
