/* Each head of a token times a matrix of its own. The matrices lie one below the other. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "step/rows.h"

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_matrix(program, op, 0, 0, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (status)
        return status;
    const uint64_t n = (uint64_t)op->n_heads, rows = program->weights[op->weights[0]].rows;
    if (op->n_heads < 1 || rows % n || program->buffers[op->in].per_token != n ||
        (uint64_t)op->apart < rows / n || (uint64_t)op->apart * n > width_of(program, op->out))
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: %llu rows do not fit %d heads",
                         program->weights[op->weights[0]].name, (unsigned long long)rows,
                         op->n_heads);
    mmrt_note_read_of_any(program, op->in, quantised);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

/* Rows [first, first + n_rows), which are of one head. */
static void multiply(const struct worker *w, const uint8_t *rows, uint64_t first, uint64_t n_rows) {
    const mmrt_program *program = w->step->program;
    const mmrt_weight *weight = weight_at(w->step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    const size_t token = first_token(w), n = w->step->n - token;
    const uint64_t of_head = weight->rows / (uint64_t)w->op->n_heads, head = first / of_head;
    const struct mmrt_columns view =
        mmrt_columns_up_to(columns_at(w->step, w->op->in), head * n + n - 1);
    float *y = row_at(out, token) + head * (uint64_t)w->op->apart + first % of_head;
    mmrt_multiply(program->kernels, w->step->exact, weight, rows, n_rows, NULL, &view, head * n, n,
                  y, out->k, w->scratch);
    const float scale = w->op->scales[0];
    for (size_t t = 0; scale != 1 && t < n; t++)
        for (uint64_t r = 0; r < n_rows; r++)
            y[t * out->k + r] *= scale;
}

static void run(struct worker *w) {
    const int32_t index = w->op->weights[0];
    const mmrt_weight *weight = weight_at(w->step, index);
    const uint64_t of_head = weight->rows / (uint64_t)w->op->n_heads;
    const struct pieces pieces = mmrt_pieces_of(w->step->program, w->op);
    uint64_t piece;
    pieces_begin(w, pieces.total);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * pieces.rows[0], after = first + pieces.rows[0];
        const uint64_t end = after < weight->rows ? after : weight->rows;
        const uint8_t *rows = rows_at(w, index, first);
        if (!rows)
            return;
        for (uint64_t row = first, next; row < end; row = next) {
            next = row - row % of_head + of_head;
            next = next < end ? next : end;
            multiply(w, rows + (row - first) * mmrt_row_bytes(weight), row, next - row);
        }
        rows_done(w, index, first, end);
    }
}

const struct op_info mmrt_op_head_linear = {
    .name = "head_linear",
    .roles = {MATRIX},
    .check = check,
    .thread_scratch = mmrt_op_multiply_scratch,
    .run = run,
};
