/* Embedding: the stream begins with rows of a table, one for each token; where there is a second
 * table, its row for the token's position is added. */
#include "base/status.h"
#include "graph/check.h"
#include "step/rows.h"

static mmrt_status check_positions(const mmrt_program *program, const mmrt_op *op,
                                   mmrt_error *err) {
    const int32_t index = op->weights[1];
    if (index < 0)
        return MMRT_OK;
    mmrt_status status = mmrt_check_weight(program, index, 0, width_of(program, op->out), err);
    if (status)
        return status;
    const mmrt_weight *positions = &program->weights[index];
    return op->first >= 0 && (uint64_t)op->first < positions->rows
               ? MMRT_OK
               : mmrt_fail(err, MMRT_FORMAT, "tensor %s: %llu rows, and position 0 is row %d",
                           positions->name, (unsigned long long)positions->rows, op->first);
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_weight(program, op->weights[0], program->vocabulary,
                                   width_of(program, op->out), err);
    if (!status)
        status = check_positions(program, op, err);
    if (status)
        return status;
    program->vocabulary = program->weights[op->weights[0]].rows;
    if (op->weights[1] >= 0)
        program->positions = program->weights[op->weights[1]].rows - (uint64_t)op->first;
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

/* For one position's embedding. */
static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return op->weights[1] < 0 ? 0 : width_of(program, op->out) * sizeof(float);
}

/* False: the step ends with this operation. */
static bool add_position(struct worker *w, uint64_t position, float *row, size_t n) {
    const int32_t index = w->op->weights[1];
    const uint8_t *blocks = mmrt_row_at(w, index, position + (uint64_t)w->op->first);
    if (!blocks)
        return false;
    mmrt_format_find(weight_at(w->step, index)->type)->unpack(blocks, w->scratch, n);
    w->step->program->kernels->add(row, w->scratch, n);
    return true;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const struct mmrt_format *format = mmrt_format_find(weight->type);
    const struct part *part = step->parts;
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
        part = part_from(part, t);
        if (w->op->weights[1] >= 0 && !add_position(w, position_of(part, t), row, out->k))
            return;
    }
}

const struct op_info mmrt_op_embed = {
    .name = "embed",
    .roles = {TABLE, TABLE},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
