/* Taking hidden rows of the caller's, one for each token, where a program begins amid a model. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    if (program->n_ops)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: TAKE is the first one", program->n_ops);
    program->taken = width_of(program, op->out);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    if (begin < end)
        memcpy(row_at(out, begin), w->step->rows + begin * out->k,
               (end - begin) * out->k * sizeof(float));
}

const struct op_info mmrt_op_take = {
    .name = "take",
    .check = check,
    .run = run,
};
