/* A matrix times vectors most of whose elements are zero. Where the matrix is there by columns too,
 * and for one token, only the columns of other elements are multiplied; else all of it, as LINEAR
 * does: to the bit, either gives the same. Within a budget these columns are read on demand. */
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

/* Of a thread's scratch, after what kernels need: where columns are, and which elements meet them.
 */
static const uint8_t **columns_of(const struct worker *w) {
    return (const uint8_t **)(void *)((uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH);
}

static uint32_t *elements(const struct worker *w, size_t cols) {
    return (uint32_t *)(void *)(columns_of(w) + cols);
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    const size_t cols = width_of(program, op->in) + 1;
    return MMRT_MATMUL_SCRATCH + cols * (sizeof(void *) + sizeof(uint32_t));
}

/* How many elements are not zero, or are NaN; which they are goes into scratch. */
static size_t find_elements(const struct worker *w, const float *x, size_t n) {
    uint32_t *which = elements(w, n);
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        which[found] = (uint32_t)i;
        found += x[i] != 0;
    }
    return found;
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
        columns_of(w)[j] =
            (const uint8_t *)columns->data + elements(w, cols)[j] * mmrt_row_bytes(columns);
}

/* False: the step ends with this operation. */
static bool await_columns(struct worker *w, int32_t turn) {
    struct step *step = w->step;
    bool failed;
    while (!mmrt_neurons_wait(step->program->units->neurons, turn, MMRT_POLL_SECONDS, &failed)) {
        if (failed)
            end_after(step, number_of(w));
        else if (!w->thread)
            mmrt_poll_caller(w, number_of(w));
        if ((!w->thread && step->forked) || atomic_load(&step->last_op) <= number_of(w))
            return false;
    }
    return true;
}

/* False likewise. */
static bool read_columns(struct worker *w, size_t cols, size_t n) {
    const struct units *units = w->step->program->units;
    const int32_t table = units->op_columns[number_of(w)], turn = number_of(w) + 1;
    const uint32_t *which = elements(w, cols);
    if (!w->thread) {
        if (!await_columns(w, 0))
            return false;
        mmrt_neurons_want(units->neurons, turn, table, which, n);
    }
    if (!await_columns(w, turn))
        return false;
    for (size_t j = 0; j < n; j++)
        columns_of(w)[j] = mmrt_neurons_row(units->neurons, table, which[j]);
    return true;
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
        kernels->by_columns[weight->type](columns_of(w), first, rows, elements(w, weight->cols), n,
                                          x, weight->cols, y, w->scratch);
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
    const size_t n = find_elements(w, x, cols);
    if (!reads && n > cols / 2) {
        mmrt_op_linear.run(w);
        return;
    }
    if (!reads)
        map_columns(w, cols, n);
    else if (!read_columns(w, cols, n))
        return;
    multiply_columns(w, x, n);
}

const struct op_info mmrt_op_sparse = {
    .name = "sparse",
    .roles = {MATRIX, COLUMNS},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
