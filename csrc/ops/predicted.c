/* Units that a predictor names: activation(gate x) * (up x), or activation(up x), as GLU and UNIT
 * have them; others are zero, whatever they would have been. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "ops/needed.h"
#include "step/rows.h"

#include <string.h>

static bool is_gated(const mmrt_op *op) {
    return op->weights[1] >= 0;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status && (op->stream == op->out || op->stream == op->in ||
                    width_of(program, op->stream) != width_of(program, op->out)))
        status =
            mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no marks for its units", program->n_ops);
    for (int i = 0; !status && i < 1 + is_gated(op); i++)
        status = mmrt_check_matrix(program, op, i, width_of(program, op->out), err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (status)
        return status;
    mmrt_note_read(program, op->stream, false);
    mmrt_note_read(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_op_multiply_scratch(program, op) +
           2 * (size_t)program->max_tokens * MMRT_ROWS_SIDE_BY_SIDE * sizeof(float);
}

/* What is not named becomes zero, and a gate up to the threshold. NaN stays NaN. */
static void cut(float *x, const float *marks, size_t n, float threshold) {
    for (size_t i = 0; i < n; i++)
        x[i] = marks[i] <= 0 || (threshold > 0 && x[i] <= threshold) ? 0 : x[i];
}

/* The rows at hand of matrix `i`, by the tokens that need them, or all where tokens are many. */
static bool multiply(struct worker *w, int i, const struct mmrt_at_hand *hand, float *y,
                     void *scratch) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const int32_t index = w->op->weights[i];
    const mmrt_weight *weight = weight_at(w->step, index);
    const uint8_t *rows = rows_at(w, index, hand->first);
    if (!rows)
        return false;
    if (hand->tokens <= w->step->program->kernels->few[weight->type])
        mmrt_multiply_needed(w, i, hand, rows, NULL, y, ROWS, scratch);
    else
        mmrt_op_multiply(w, i, rows, hand->first, hand->n, NULL, y, ROWS, scratch);
    rows_done(w, index, hand->first, hand->first + hand->n);
    return true;
}

static void run(struct worker *w) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const uint64_t all = weight_at(step, w->op->weights[0])->rows;
    const struct mmrt_columns *marks = columns_at(step, w->op->stream);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const enum mmrt_activation activation = (enum mmrt_activation)w->op->activation;
    const size_t token = first_token(w), n = step->n - token;
    float *first = w->scratch, *second = first + n * ROWS;
    void *scratch = second + n * ROWS;
    uint64_t piece;
    pieces_begin(w, (all + ROWS - 1) / ROWS);
    while (pieces_next(w, &piece)) {
        const uint64_t row = piece * ROWS, left = all - row, end = left < ROWS ? left : ROWS;
        struct mmrt_at_hand hand = {row, end, row_at(marks, token) + row, marks->k, n};
        if (!multiply(w, 0, &hand, first, scratch))
            return;
        for (size_t t = 0; t < n; t++)
            cut(first + t * ROWS, row_at(marks, token + t) + row, end, w->op->threshold);
        hand.marks = first;
        hand.stride = ROWS;
        if (is_gated(w->op) && !multiply(w, 1, &hand, second, scratch))
            return;
        for (size_t t = 0; t < n; t++) {
            float *y = row_at(out, token + t) + row;
            if (is_gated(w->op)) {
                kernels->glu(activation, first + t * ROWS, second + t * ROWS, y, end);
            } else {
                memcpy(y, first + t * ROWS, end * sizeof *y);
                kernels->activate(activation, y, end);
            }
            if (out->q)
                kernels->quantize(out, token + t, row, end);
        }
    }
}

const struct op_info mmrt_op_predicted = {
    .name = "predicted",
    .roles = {MATRIX, MATRIX},
    .side_by_side = true,
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
