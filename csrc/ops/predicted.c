/* Units that a predictor names: activation(gate x) * (up x), or activation(up x), as GLU and UNIT
 * have them; others are zero, whatever they would have been. Within a budget a step of one token
 * reads them on demand, where a bundle has them whole: column of `down`, row of `up`, of the gate.
 */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "ops/needed.h"
#include "ops/neurons.h"
#include "step/rows.h"

#include <string.h>

static bool is_gated(const mmrt_op *op) {
    return op->weights[1] >= 0;
}

static uint64_t row_bytes(const mmrt_program *program, const mmrt_op *op, int i) {
    return mmrt_row_bytes(&program->weights[op->weights[i]]);
}

/* The column has as many elements as what the matrices read. */
static uint64_t begin_of_up(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neuron_column(program, op->weights[2], program->weights[op->weights[0]].cols);
}

static uint64_t neuron_bytes(const mmrt_program *program, const mmrt_op *op) {
    const uint64_t rows =
        row_bytes(program, op, 0) + (is_gated(op) ? row_bytes(program, op, 1) : 0);
    return begin_of_up(program, op) + rows;
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
    if (!status && op->weights[2] >= 0)
        status = mmrt_check_neurons(program, op->weights[2], width_of(program, op->out),
                                    neuron_bytes(program, op), err);
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

/* Bytes of scratch for the rows that are read, and for kernels. */
static size_t begin_of_products(uint64_t n_units) {
    enum { LINE = 64 };
    return (mmrt_neurons_scratch(n_units) + LINE - 1) / LINE * LINE;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return begin_of_products(width_of(program, op->out)) +
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

/* Units that a thread is at work on. Of all tokens' first products, which decide, then of `up`. */
struct units_at_hand {
    uint64_t row, n;
    float *first, *second; /* [tokens][ROWS] */
    void *scratch;
};

/* False: the step ends with this operation. */
static bool multiply_rows(struct worker *w, const struct units_at_hand *u) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct mmrt_columns *marks = columns_at(w->step, w->op->stream);
    const size_t token = first_token(w), n = w->step->n - token;
    struct mmrt_at_hand hand = {u->row, u->n, row_at(marks, token) + u->row, marks->k, n};
    if (!multiply(w, 0, &hand, u->first, u->scratch))
        return false;
    for (size_t t = 0; t < n; t++)
        cut(u->first + t * ROWS, row_at(marks, token + t) + u->row, u->n, w->op->threshold);
    hand.marks = u->first;
    hand.stride = ROWS;
    return !is_gated(w->op) || multiply(w, 1, &hand, u->second, u->scratch);
}

/* The first of these rising numbers that is not below `row`. */
static size_t find_first(const uint32_t *numbers, size_t n, uint64_t row) {
    size_t begin = 0;
    while (begin < n) {
        const size_t middle = begin + (n - begin) / 2;
        if (numbers[middle] < row)
            begin = middle + 1;
        else
            n = middle;
    }
    return begin;
}

/* By rows that have been read: of the n_named units in rising order, those at hand. */
static void multiply_read(struct worker *w, const struct units_at_hand *u, uint64_t all,
                          size_t n_named) {
    const mmrt_program *program = w->step->program;
    const uint64_t up = begin_of_up(program, w->op);
    const uint64_t gate = is_gated(w->op) ? up + row_bytes(program, w->op, 1) : up;
    const uint32_t *named = mmrt_which_neurons(w, all);
    memset(u->first, 0, u->n * sizeof *u->first);
    memset(u->second, 0, u->n * sizeof *u->second);
    for (size_t i = find_first(named, n_named, u->row); i < n_named; i++) {
        if (named[i] >= u->row + u->n)
            break;
        const uint64_t at = named[i] - u->row;
        const uint8_t *neuron = mmrt_where_neurons(w)[i];
        const float mark = 1;
        u->first[at] = mmrt_times_neuron(w, 0, neuron + gate, named[i]);
        cut(u->first + at, &mark, 1, w->op->threshold);
        if (is_gated(w->op) && !(u->first[at] <= 0))
            u->second[at] = mmrt_times_neuron(w, 1, neuron + up, named[i]);
    }
}

static void activate(const struct worker *w, const struct units_at_hand *u) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const enum mmrt_activation activation = (enum mmrt_activation)w->op->activation;
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    for (size_t t = 0, token = first_token(w); token + t < step->n; t++) {
        float *y = row_at(out, token + t) + u->row;
        if (is_gated(w->op)) {
            kernels->glu(activation, u->first + t * ROWS, u->second + t * ROWS, y, u->n);
        } else {
            memcpy(y, u->first + t * ROWS, u->n * sizeof *y);
            kernels->activate(activation, y, u->n);
        }
        if (out->q)
            kernels->quantize(out, token + t, u->row, u->n);
    }
}

static void run(struct worker *w) {
    enum { ROWS = MMRT_ROWS_SIDE_BY_SIDE };
    const struct step *step = w->step;
    const uint64_t all = weight_at(step, w->op->weights[0])->rows;
    const bool reads = mmrt_reads_columns(step->program, number_of(w), step->n);
    const size_t n = step->n - first_token(w);
    size_t n_named = 0;
    if (reads) {
        const struct mmrt_columns *marks = columns_at(step, w->op->stream);
        n_named = mmrt_find_neurons(w, row_at(marks, first_token(w)), all);
        if (!mmrt_read_neurons(w, all, n_named))
            return;
    }
    float *first = (float *)(void *)((uint8_t *)w->scratch + begin_of_products(all));
    struct units_at_hand u = {.first = first, .second = first + n * ROWS, .scratch = w->scratch};
    uint64_t piece;
    pieces_begin(w, (all + ROWS - 1) / ROWS);
    while (pieces_next(w, &piece)) {
        u.row = piece * ROWS;
        u.n = all - u.row < ROWS ? all - u.row : ROWS;
        if (reads)
            multiply_read(w, &u, all, n_named);
        else if (!multiply_rows(w, &u))
            return;
        activate(w, &u);
    }
}

const struct op_info mmrt_op_predicted = {
    .name = "predicted",
    .roles = {MATRIX, MATRIX, COLUMNS},
    .side_by_side = true,
    .check = check,
    .thread_scratch = scratch,
    .neuron_bytes = neuron_bytes,
    .run = run,
};
