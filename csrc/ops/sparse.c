/* A matrix times vectors most of whose elements are zero. Where the matrix is there by columns too,
 * and for one token, only the columns of other elements are multiplied; else all of it, as LINEAR
 * does: to the bit, either gives the same. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/multiply.h"
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

static uint32_t *elements(const struct worker *w) {
    return (uint32_t *)(void *)((uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH);
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return MMRT_MATMUL_SCRATCH + (width_of(program, op->in) + 1) * sizeof(uint32_t);
}

/* How many elements are not zero, or are NaN; which they are goes into scratch. */
static size_t find_elements(const struct worker *w, const float *x, size_t n) {
    uint32_t *which = elements(w);
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        which[found] = (uint32_t)i;
        found += x[i] != 0;
    }
    return found;
}

/* Columns are on the pages of a mapped file, which a budget does not keep. */
static bool has_columns(const struct worker *w) {
    const struct step *step = w->step;
    const struct units *units = step->program->units;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    return w->op->weights[1] >= 0 && step->n - first_token(w) == 1 &&
           !(units && mmrt_source_is_limited(units->source)) &&
           step->program->kernels->by_columns[weight->type] &&
           weight->rows % MMRT_BY_COLUMNS == 0 && weight->cols % MMRT_BY_COLUMNS == 0;
}

static void multiply_columns(struct worker *w, const float *x, size_t n) {
    enum { ROWS = 4 * MMRT_BY_COLUMNS }; /* of a piece */
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const mmrt_weight *columns = weight_at(step, w->op->weights[1]);
    const size_t element = mmrt_format_find(weight->type)->bytes;
    float *out = row_at(columns_at(step, w->op->out), first_token(w));
    uint64_t piece;
    pieces_begin(w, (weight->rows + ROWS - 1) / ROWS);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * ROWS, left = weight->rows - first;
        const uint64_t rows = left < ROWS ? left : ROWS;
        float *y = out + first;
        kernels->by_columns[weight->type]((const uint8_t *)columns->data + first * element,
                                          mmrt_row_bytes(columns), rows, elements(w), n, x,
                                          weight->cols, y, w->scratch);
        for (uint64_t r = 0; w->op->scales[0] != 1 && r < rows; r++)
            y[r] *= w->op->scales[0];
        if (w->op->biases[0] >= 0)
            kernels->add(y, (const float *)weight_at(step, w->op->biases[0])->data + first, rows);
    }
}

static void run(struct worker *w) {
    const size_t cols = weight_at(w->step, w->op->weights[0])->cols;
    const float *x = row_at(columns_at(w->step, w->op->in), first_token(w));
    const size_t n = has_columns(w) ? find_elements(w, x, cols) : cols;
    if (n <= cols / 2)
        multiply_columns(w, x, n);
    else
        mmrt_op_linear.run(w);
}

const struct op_info mmrt_op_sparse = {
    .name = "sparse",
    .roles = {MATRIX, TABLE},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
