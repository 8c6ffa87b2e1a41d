/* Embedding: the stream begins with rows of a table, one for each token. */
#include "graph/check.h"
#include "step/rows.h"

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_weight(program, op->weights[0], program->vocabulary,
                                   width_of(program, op->out), err);
    if (status)
        return status;
    program->vocabulary = program->weights[op->weights[0]].rows;
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const struct mmrt_format *format = mmrt_format_find(weight->type);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *row = row_at(out, t);
        const uint8_t *blocks = mmrt_row_at(w, w->op->weights[0], (uint64_t)step->tokens[t]);
        if (!blocks)
            return;
        format->unpack(blocks, row, out->k);
        for (size_t i = 0; i < out->k; i++)
            row[i] *= w->op->scale;
    }
}

const struct op_info mmrt_op_embed = {
    .name = "embed",
    .roles = {TABLE},
    .check = check,
    .run = run,
};
