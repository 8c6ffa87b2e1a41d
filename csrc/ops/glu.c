/* Gated units: activation(gate x) * (up x). Gate and up rows are multiplied side by side into
 * scratch, so that their product is formed while both are in the cache. Where the activation of a
 * gate is zero the product is zero, and few tokens leave out the rows of `up` that none needs. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "ops/needed.h"
#include "step/rows.h"

#include <string.h>

/* Columns come with a buffer for gates, which is no other. */
static mmrt_status check_gates(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->stream, err);
    if (!status &&
        (op->weights[2] >= program->n_weights || op->stream == op->out || op->stream == op->in ||
         width_of(program, op->stream) != width_of(program, op->out)))
        status = mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no columns, or no room for gates",
                           program->n_ops);
    return status;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    for (int i = 0; !status && i < 2; i++)
        status = mmrt_check_matrix(program, op, i, width_of(program, op->out), err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (!status && op->weights[2] >= 0)
        status = check_gates(program, op, err);
    if (status)
        return status;
    if (op->weights[2] >= 0)
        mmrt_note_write(program, op, op->stream, false);
    mmrt_note_read(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_op_multiply_scratch(program, op) +
           2 * (program->max_tokens + MMRT_FEW) * MMRT_ROWS_SIDE_BY_SIDE * sizeof(float);
}

/* Few columns read rows faster than fetching ahead can change from gate to up and back: they take
 * twice as many at a time, unless threads would find too few pieces. */
static uint64_t rows_of_piece(const struct worker *w, const mmrt_weight *gate, size_t n) {
    enum { ONCE = MMRT_ROWS_SIDE_BY_SIDE, TWICE = 2 * ONCE };
    const size_t few = w->step->program->kernels->few[gate->type];
    const bool twice =
        !w->in_order && n <= few && gate->rows >= (uint64_t)w->n_threads * 16 * TWICE;
    return twice ? TWICE : ONCE;
}

/* Gates up to the threshold become zero; NaN stays NaN. */
static void cut(float *gates, size_t n, float threshold) {
    for (size_t i = 0; i < n; i++)
        gates[i] = gates[i] <= threshold ? 0 : gates[i];
}

static bool has_zeros(const mmrt_op *op) {
    return op->activation == MMRT_RELU || op->activation == MMRT_RELU2;
}

/* For the only token, whose rows of `up` UPS reads: gates, or zero where their activation is. What
 * comes of them is zero until then. */
static void run_gates(struct worker *w) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct step *step = w->step;
    const mmrt_weight *gate = weight_at(step, w->op->weights[0]);
    float *gates = row_at(columns_at(step, w->op->stream), first_token(w));
    float *out = row_at(columns_at(step, w->op->out), first_token(w));
    uint64_t piece;
    pieces_begin(w, (gate->rows + ROWS - 1) / ROWS);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * ROWS, left = gate->rows - first;
        const uint64_t n = left < ROWS ? left : ROWS;
        const uint8_t *rows = rows_at(w, w->op->weights[0], first);
        if (!rows)
            return;
        mmrt_op_multiply(w, 0, rows, first, n, NULL, gates + first, n, w->scratch);
        rows_done(w, w->op->weights[0], first, first + n);
        cut(gates + first, n, w->op->threshold);
        memset(out + first, 0, n * sizeof *out);
    }
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    if (mmrt_reads_columns(step->program, number_of(w), step->n)) {
        run_gates(w);
        return;
    }
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_weight *gate = weight_at(step, w->op->weights[0]);
    const mmrt_weight *up = weight_at(step, w->op->weights[1]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t token = first_token(w), n = step->n - token;
    const bool leaves_out = has_zeros(w->op) && n <= kernels->few[up->type];
    const uint64_t rows = rows_of_piece(w, gate, n);
    float *gates = w->scratch, *ups = gates + n * rows;
    void *scratch = ups + n * rows;
    uint64_t piece;
    pieces_begin(w, (gate->rows + rows - 1) / rows);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * rows;
        const uint64_t end = first + rows < gate->rows ? first + rows : gate->rows;
        const uint8_t *gate_rows = rows_at(w, w->op->weights[0], first);
        const uint8_t *up_rows = rows_at(w, w->op->weights[1], first);
        if (!gate_rows || !up_rows)
            return;
        const uint8_t *next = gate_rows + (end - first) * mmrt_row_bytes(gate);
        mmrt_op_multiply(w, 0, gate_rows, first, end - first, up_rows, gates, rows, scratch);
        rows_done(w, w->op->weights[0], first, end);
        for (size_t t = 0; w->op->threshold > 0 && t < n; t++)
            cut(gates + t * rows, end - first, w->op->threshold);
        const struct mmrt_at_hand hand = {first, end - first, gates, rows, n};
        if (leaves_out) /* zero times a row's product is zero, if it is finite */
            mmrt_multiply_needed(w, 1, &hand, up_rows, next, ups, rows, scratch);
        else
            mmrt_op_multiply(w, 1, up_rows, first, end - first, next, ups, rows, scratch);
        rows_done(w, w->op->weights[1], first, end);
        for (size_t t = 0; t < n; t++) {
            kernels->glu((enum mmrt_activation)w->op->activation, gates + t * rows, ups + t * rows,
                         row_at(out, token + t) + first, end - first);
            if (out->q)
                kernels->quantize(out, token + t, first, end - first);
        }
    }
}

const struct op_info mmrt_op_glu = {
    .name = "glu",
    .roles = {MATRIX, MATRIX, COLUMNS},
    .side_by_side = true,
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
