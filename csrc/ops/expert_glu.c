/* Units of the chosen experts: activation(gate x) * (up x), each a matrix of its stack; or one of a
 * single stack has the rows of both, gate's first. Plain ones are activation(matrix x). */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/experts.h"
#include "step/rows.h"

#include <string.h>

static bool in_one(const mmrt_op *op) {
    return op->weights[1] < 0 && !op->plain;
}

/* `in` has the tokens' columns as they are, `stream` the same sorted by expert. */
static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_choices(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    const int n = in_one(op) || op->plain ? 1 : 2;
    for (int i = 0; !status && i < n; i++)
        status = mmrt_check_stack(program, op, i, width_of(program, op->out) * (in_one(op) ? 2 : 1),
                                  width_of(program, op->in), err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, quantised, err);
    if (status)
        return status;
    if (program->buffers[op->out].per_token != (uint32_t)op->n_used ||
        program->buffers[op->stream].per_token != (uint32_t)op->n_used)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_read(program, op->in, quantised);
    mmrt_note_read_of_any(program, op->stream, quantised);
    mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

/* Of gate and up, for all tokens: each goes to an expert at most once. */
static size_t products(const mmrt_program *program) {
    return 2 * (size_t)program->max_tokens * MMRT_ROWS_SIDE_BY_SIDE * sizeof(float);
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    const uint32_t n_experts = program->buffers[op->choices].n_experts;
    return MMRT_MATMUL_SCRATCH + products(program) +
           mmrt_expert_order_bytes(program, op, n_experts);
}

static void run(struct worker *w) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct step *step = w->step;
    const mmrt_program *program = step->program;
    const mmrt_weight *gate = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const bool single = step->n - first_token(w) == 1;
    const struct mmrt_columns *in = columns_at(step, single ? w->op->in : w->op->stream);
    uint8_t *memory = (uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH;
    float *gates = (float *)(void *)memory;
    const struct expert_order order =
        mmrt_expert_order(w, (uint32_t)gate->stack, memory + products(program));
    const uint64_t n_rows = out->k; /* of an expert's gate, and of its up, which begins at: */
    const enum mmrt_activation activation = (enum mmrt_activation)w->op->activation;
    const uint64_t up_first = in_one(w->op) ? n_rows : 0;
    const int up = in_one(w->op) ? 0 : 1;
    const uint64_t pieces = (n_rows + ROWS - 1) / ROWS; /* of an expert */
    uint64_t piece;
    pieces_begin(w, order.n_active * pieces);
    while (pieces_next(w, &piece)) {
        const uint32_t expert = order.active[piece / pieces];
        const size_t column = order.first[expert], n = order.first[expert + 1] - column;
        const uint64_t first = piece % pieces * ROWS, left = n_rows - first;
        const uint64_t rows = left < ROWS ? left : ROWS;
        const size_t read = single ? first_token(w) : column;
        float *ups = gates + n * ROWS;
        if (!mmrt_expert_multiply(w, 0, expert, first, rows, in, read, n, gates, ROWS,
                                  w->scratch) ||
            (!w->op->plain && !mmrt_expert_multiply(w, up, expert, up_first + first, rows, in, read,
                                                    n, ups, ROWS, w->scratch)))
            return;
        for (size_t c = 0; c < n; c++) {
            float *units = row_at(out, column + c) + first;
            if (w->op->plain) {
                memcpy(units, gates + c * ROWS, rows * sizeof *units);
                program->kernels->activate(activation, units, rows);
            } else
                program->kernels->glu(activation, gates + c * ROWS, ups + c * ROWS, units, rows);
            if (out->q)
                program->kernels->quantize(out, column + c, first, rows);
        }
    }
}

const struct op_info mmrt_op_expert_glu = {
    .name = "expert_glu",
    .roles = {STACK, STACK},
    .side_by_side = true,
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
