/* Within a budget, and for a step of one token, GLU leaves gates alone: the rows of `up` that they
 * need are read here, with the columns of `down` beside them, and multiplied. Other steps have
 * nothing left to do. */
#include "base/status.h"
#include "graph/check.h"
#include "kernels/multiply.h"
#include "ops/neurons.h"
#include "step/rows.h"

/* Bytes from where a neuron begins to its row of `up`, which comes after the column. */
static uint64_t begin_of_row(const mmrt_weight *columns, const mmrt_weight *up) {
    return up->cols * mmrt_format_find(columns->type)->bytes;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->out, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status && width_of(program, op->stream) != width_of(program, op->out))
        status = mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    if (!status)
        status = mmrt_check_matrix(program, op, 1, width_of(program, op->out), err);
    const bool quantised =
        !status && mmrt_format_find(program->weights[op->weights[1]].type)->elements > 1;
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (!status)
        status = mmrt_check_weight(program, op->weights[0], width_of(program, op->out),
                                   program->weights[op->weights[0]].cols, err);
    if (status)
        return status;
    const mmrt_weight *columns = &program->weights[op->weights[0]];
    const mmrt_weight *up = &program->weights[op->weights[1]];
    if (mmrt_format_find(columns->type)->elements > 1 ||
        mmrt_row_bytes(columns) < begin_of_row(columns, up) + mmrt_row_bytes(up))
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: it has no room for rows of %s",
                         columns->name, up->name);
    mmrt_note_read(program, op->in, quantised);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neurons_scratch(width_of(program, op->out));
}

static float row_times_token(struct worker *w, const uint8_t *row, uint32_t neuron) {
    const mmrt_program *program = w->step->program;
    const mmrt_weight *up = weight_at(w->step, w->op->weights[1]);
    float y;
    mmrt_multiply(program->kernels, w->step->exact, up, row, 1, row, columns_at(w->step, w->op->in),
                  first_token(w), 1, &y, 1, w->scratch);
    y *= w->op->scales[1];
    if (w->op->biases[1] >= 0)
        y += ((const float *)weight_at(w->step, w->op->biases[1])->data)[neuron];
    return y;
}

static void run(struct worker *w) {
    enum { AT_ONCE = 8 };
    const struct step *step = w->step;
    if (!mmrt_reads_columns(step->program, number_of(w), step->n))
        return;
    const mmrt_weight *up = weight_at(step, w->op->weights[1]);
    const uint64_t begin = begin_of_row(weight_at(step, w->op->weights[0]), up);
    const float *gates = row_at(columns_at(step, w->op->stream), first_token(w));
    float *out = row_at(columns_at(step, w->op->out), first_token(w));
    const size_t n = mmrt_find_neurons(w, gates, up->rows);
    if (!mmrt_read_neurons(w, up->rows, n))
        return;
    uint64_t piece;
    pieces_begin(w, (n + AT_ONCE - 1) / AT_ONCE);
    while (pieces_next(w, &piece)) {
        const size_t first = piece * AT_ONCE, end = first + AT_ONCE < n ? first + AT_ONCE : n;
        for (size_t i = first; i < end; i++) {
            const uint32_t neuron = mmrt_which_neurons(w, up->rows)[i];
            const float y = row_times_token(w, mmrt_where_neurons(w)[i] + begin, neuron);
            step->program->kernels->glu((enum mmrt_activation)w->op->activation, gates + neuron, &y,
                                        out + neuron, 1);
        }
    }
}

const struct op_info mmrt_op_ups = {
    .name = "ups",
    .roles = {COLUMNS, OTHERS},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
