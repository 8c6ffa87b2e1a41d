/* Heads without the padding between them. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t n = (uint64_t)op->n_heads;
    mmrt_status status = mmrt_check_layer(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    if (op->n_heads < 1 || width_of(program, op->in) != n * mmrt_head_room(layer) ||
        width_of(program, op->out) != n * layer->spec.k_dim)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

/* `in` may be `out`, where heads have no padding. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t n_heads = (size_t)w->op->n_heads;
    const size_t dim = out->k / n_heads, room = in->k / n_heads;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        for (size_t h = 0; h < n_heads && in != out; h++)
            memcpy(row_at(out, t) + h * dim, row_at(in, t) + h * room, dim * sizeof(float));
        quantize_row(step, out, t);
    }
}

const struct op_info mmrt_op_join = {
    .name = "join",
    .check = check,
    .run = run,
};
