/* One to three matrices times one input, side by side in the output. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "step/rows.h"

static mmrt_status check_matrices(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    uint64_t rows = 0;
    if (op->weights[0] < 0 || (op->weights[1] < 0 && op->weights[2] >= 0))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: a weight is missing", program->n_ops);
    for (int i = 0; i < 3 && op->weights[i] >= 0; i++) {
        mmrt_status status = mmrt_check_matrix(program, op, i, 0, err);
        if (status)
            return status;
        rows += program->weights[op->weights[i]].rows;
    }
    if (rows != width_of(program, op->out))
        return mmrt_fail(err, MMRT_FORMAT,
                         "tensor %s: %llu rows (with its neighbours) where %llu are expected",
                         program->weights[op->weights[0]].name, (unsigned long long)rows,
                         (unsigned long long)width_of(program, op->out));
    return MMRT_OK;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = check_matrices(program, op, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (status)
        return status;
    mmrt_note_read(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const struct pieces pieces = mmrt_pieces_of(step->program, w->op);
    uint64_t piece;
    pieces_begin(w, pieces.total);
    while (pieces_next(w, &piece)) {
        uint64_t out_row = 0;
        int i = 0;
        for (; piece >= pieces.n[i]; i++) {
            piece -= pieces.n[i];
            out_row += weight_at(step, w->op->weights[i])->rows;
        }
        const mmrt_weight *weight = weight_at(step, w->op->weights[i]);
        uint64_t first = piece * pieces.rows[i], end = first + pieces.rows[i];
        if (end > weight->rows)
            end = weight->rows;
        const uint8_t *rows = rows_at(w, w->op->weights[i], first);
        if (!rows)
            return;
        mmrt_op_multiply(w, i, rows, first, end - first, NULL,
                         row_at(out, first_token(w)) + out_row + first, out->k, w->scratch);
        rows_done(w, w->op->weights[i], first, end);
    }
}

const struct op_info mmrt_op_linear = {
    .name = "linear",
    .roles = {MATRIX, MATRIX, MATRIX},
    .check = check,
    .thread_scratch = mmrt_op_multiply_scratch,
    .run = run,
};
