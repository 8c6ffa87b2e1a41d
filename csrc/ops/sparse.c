/* A matrix times vectors most of whose elements are zero. Where the matrix is there by columns too,
 * and for one token, only the columns of other elements are multiplied; else all of it, as LINEAR
 * does: to the bit, either gives the same. Within a budget these columns are read on demand. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/multiply.h"
#include "ops/neurons.h"
#include "step/rows.h"

static mmrt_status check_columns(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const int32_t index = op->weights[0], by = op->weights[1];
    if (index < 0 || index >= program->n_weights || by >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no such weight", program->n_ops);
    const mmrt_weight *w = &program->weights[index];
    const mmrt_weight *columns = by < 0 ? NULL : &program->weights[by];
    if (!columns || (columns->type == w->type && columns->rows == w->cols &&
                     columns->cols >= w->rows && columns->stack <= 1))
        return MMRT_OK;
    return mmrt_fail(
        err, MMRT_FORMAT, "tensor %s: shape (%llu, %llu) in %s, where columns of %s are expected",
        columns->name, (unsigned long long)columns->rows, (unsigned long long)columns->cols,
        mmrt_format_find(columns->type)->name, w->name);
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_op dense = *op;
    dense.weights[1] = -1;
    const mmrt_status status = check_columns(program, op, err);
    return status ? status : mmrt_op_linear.check(program, &dense, err);
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neurons_scratch(width_of(program, op->in));
}

static uint64_t neuron_bytes(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_neuron_column(program, op->weights[1], program->weights[op->weights[0]].rows);
}

/* Columns are on the pages of a mapped file, which a budget does not keep. */
static bool has_mapped_columns(const struct worker *w) {
    const struct step *step = w->step;
    const struct units *units = step->program->units;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    return w->op->weights[1] >= 0 && step->n - first_token(w) == 1 &&
           !(units && mmrt_source_is_limited(units->source)) &&
           step->program->kernels->by_columns[weight->type] &&
           weight->rows % MMRT_BY_COLUMNS == 0 && weight->cols % MMRT_BY_COLUMNS == 0;
}

static void map_columns(const struct worker *w, size_t cols, size_t n) {
    const mmrt_weight *columns = weight_at(w->step, w->op->weights[1]);
    for (size_t j = 0; j < n; j++)
        mmrt_where_neurons(w)[j] = (const uint8_t *)columns->data +
                                   mmrt_which_neurons(w, cols)[j] * mmrt_row_bytes(columns);
}

static void multiply_columns(struct worker *w, const float *x, size_t n) {
    enum { ROWS = 4 * MMRT_BY_COLUMNS }; /* of a piece */
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    float *out = row_at(columns_at(step, w->op->out), first_token(w));
    uint64_t piece;
    pieces_begin(w, (weight->rows + ROWS - 1) / ROWS);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * ROWS, left = weight->rows - first;
        const uint64_t rows = left < ROWS ? left : ROWS;
        float *y = out + first;
        kernels->by_columns[weight->type](mmrt_where_neurons(w), first, rows,
                                          mmrt_which_neurons(w, weight->cols), n, x, weight->cols,
                                          y, w->scratch);
        for (uint64_t r = 0; w->op->scales[0] != 1 && r < rows; r++)
            y[r] *= w->op->scales[0];
        if (w->op->biases[0] >= 0)
            kernels->add(y, (const float *)weight_at(step, w->op->biases[0])->data + first, rows);
    }
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const bool reads = mmrt_reads_columns(step->program, number_of(w), step->n);
    if (!reads && !has_mapped_columns(w)) {
        mmrt_op_linear.run(w);
        return;
    }
    const size_t cols = weight_at(step, w->op->weights[0])->cols;
    const float *x = row_at(columns_at(step, w->op->in), first_token(w));
    const size_t n = mmrt_find_neurons(w, x, cols);
    if (!reads && n > cols / 2) {
        mmrt_op_linear.run(w);
        return;
    }
    if (!reads)
        map_columns(w, cols, n);
    else if (!mmrt_read_neurons(w, cols, n))
        return;
    multiply_columns(w, x, n);
}

const struct op_info mmrt_op_sparse = {
    .name = "sparse",
    .roles = {MATRIX, COLUMNS},
    .check = check,
    .thread_scratch = scratch,
    .neuron_bytes = neuron_bytes,
    .run = run,
};
