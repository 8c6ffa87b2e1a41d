/* Plain units: activation(matrix x), times what a buffer holds for each, if there is one. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "step/rows.h"

static mmrt_status check_factors(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status &&
        (op->stream == op->out || op->first < 0 ||
         (uint64_t)op->first + width_of(program, op->out) > width_of(program, op->stream)))
        status = mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    return status;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_matrix(program, op, 0, width_of(program, op->out), err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (!status && op->stream >= 0)
        status = check_factors(program, op, err);
    if (status)
        return status;
    mmrt_note_read(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const enum mmrt_activation activation = (enum mmrt_activation)w->op->activation;
    const struct pieces pieces = mmrt_pieces_of(step->program, w->op);
    uint64_t piece;
    pieces_begin(w, pieces.total);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * pieces.rows[0], after = first + pieces.rows[0];
        const uint64_t end = after < weight->rows ? after : weight->rows;
        const uint8_t *rows = rows_at(w, w->op->weights[0], first);
        if (!rows)
            return;
        mmrt_op_multiply(w, 0, rows, first, end - first, NULL, row_at(out, first_token(w)) + first,
                         out->k, w->scratch);
        rows_done(w, w->op->weights[0], first, end);
        for (size_t t = first_token(w); t < step->n; t++) {
            float *units = row_at(out, t) + first;
            if (w->op->stream >= 0)
                kernels->glu(activation, units,
                             row_at(columns_at(step, w->op->stream), t) + w->op->first + first,
                             units, end - first);
            else
                kernels->activate(activation, units, end - first);
            if (out->q)
                kernels->quantize(out, t, first, end - first);
        }
    }
}

const struct op_info mmrt_op_unit = {
    .name = "unit",
    .roles = {MATRIX},
    .side_by_side = true, /* pieces of whole quantisation groups */
    .check = check,
    .thread_scratch = mmrt_op_multiply_scratch,
    .run = run,
};
