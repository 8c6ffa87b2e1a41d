/* Within a budget, and for a step of one token, GLU leaves gates alone: the rows of `up` that they
 * need are read here, with the columns of `down` beside them, and multiplied. Other steps have
 * nothing left to do. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/neurons.h"
#include "step/rows.h"

static uint64_t begin_of_row(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neuron_column(program, op->weights[0], program->weights[op->weights[1]].cols);
}

static uint64_t neuron_bytes(const mmrt_program *program, const mmrt_op *op) {
    return begin_of_row(program, op) + mmrt_row_bytes(&program->weights[op->weights[1]]);
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
        status = mmrt_check_neurons(program, op->weights[0], width_of(program, op->out),
                                    neuron_bytes(program, op), err);
    if (status)
        return status;
    mmrt_note_read(program, op->in, quantised);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neurons_scratch(width_of(program, op->out));
}

static void run(struct worker *w) {
    enum { AT_ONCE = 8 };
    const struct step *step = w->step;
    if (!mmrt_reads_columns(step->program, number_of(w), step->n))
        return;
    const mmrt_weight *up = weight_at(step, w->op->weights[1]);
    const uint64_t begin = begin_of_row(step->program, w->op);
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
            const float y = mmrt_times_neuron(w, 1, mmrt_where_neurons(w)[i] + begin, neuron);
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
    .neuron_bytes = neuron_bytes,
    .run = run,
};
