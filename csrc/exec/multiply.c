/* Matrices times activations, split among threads. */
#include "exec/program.h"

#include "base/pool.h"
#include "base/status.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Columns that matvec gives, to the bit, what it gives each of them alone. */
static size_t few_exactly(const struct mmrt_kernels *kernels, const mmrt_weight *w) {
    return mmrt_format_find(w->type)->elements > 1 ? kernels->few[w->type] : 1;
}

/* All columns from first_column on up to the last. `next` is read after these rows; NULL: what
 * follows them. exact: each column gets what it would get alone. */
static void multiply(const struct mmrt_kernels *kernels, bool exact, const mmrt_weight *w,
                     const uint8_t *rows, uint64_t n_rows, const uint8_t *next,
                     const struct mmrt_columns *x, size_t first_column, size_t n, float *y,
                     size_t y_stride, void *scratch) {
    const size_t bytes = row_bytes(w);
    const size_t few = exact ? few_exactly(kernels, w) : kernels->few[w->type];
    next = next ? next : rows + n_rows * bytes;
    if (n <= few) {
        kernels->matvec[w->type](rows, bytes, n_rows, next, x, n, y, y_stride);
    } else if (exact) {
        for (size_t c = 0; c < n; c += few) {
            const size_t some = n - c < few ? n - c : few;
            const struct mmrt_columns part = mmrt_columns_up_to(x, first_column + c + some - 1);
            kernels->matvec[w->type](rows, bytes, n_rows, n - c > few ? rows : next, &part, some,
                                     y + c * y_stride, y_stride);
        }
    } else {
        kernels->matmul[w->type](rows, bytes, n_rows, x, first_column, n, y, y_stride, scratch);
    }
}

/* Makes of the product of weight `i` of the operation, its rows from `first` on, what is wanted:
 * scaled, with the bias. */
static void complete(const struct worker *w, int i, uint64_t first, uint64_t n_rows, float *y,
                     size_t y_stride, size_t n) {
    const float scale = w->op->scales[i];
    for (size_t t = 0; scale != 1 && t < n; t++)
        for (uint64_t r = 0; r < n_rows; r++)
            y[t * y_stride + r] *= scale;
    if (w->op->biases[i] < 0)
        return;
    const float *bias = weight_at(w->step, w->op->biases[i])->data;
    for (size_t t = 0; t < n; t++)
        w->step->program->kernels->add(y + t * y_stride, bias + first, n_rows);
}

/* Rows of a piece: enough to amortise taking it. `all` are those that are shared out together. */
static uint64_t piece_rows(const mmrt_weight *w, uint64_t all) {
    /* Many: as many panels as a kernel multiplies with one look at the columns. */
    enum { PIECE_BYTES = 16384, MANY = 2048, PANEL = 16, PANELS = 64 };
    const uint64_t unit = all >= MANY ? PANELS : PANEL;
    return (PIECE_BYTES / row_bytes(w) + unit) / unit * unit;
}

uint64_t mmrt_piece_rows(const mmrt_program *program, const mmrt_op *op, int weight) {
    if (op->kind == MMRT_OP_GLU)
        return MMRT_GLU_ROWS;
    uint64_t all = 0;
    for (int i = 0; i < 3 && op->weights[i] >= 0; i++)
        all += program->weights[op->weights[i]].rows;
    return piece_rows(&program->weights[op->weights[weight]], all);
}

/* Gate and up rows are multiplied side by side into scratch, so that their product is formed while
 * both are in the cache. A piece is a whole number of quantisation groups. */
static_assert(MMRT_GLU_ROWS % MMRT_GROUP == 0, "whole groups");

/* How the rows of an operation's weights are cut into pieces: one space of pieces for all of them
 * together, so that three small matrices are shared out as one. */
struct pieces {
    int n_weights;
    uint64_t rows[3], n[3]; /* of each weight: rows of a piece, pieces */
    uint64_t total;
};

static struct pieces pieces_of(const mmrt_program *program, const mmrt_op *op) {
    struct pieces p = {.n_weights = 0};
    if (op->kind == MMRT_OP_GLU) { /* the same piece of both */
        const uint64_t rows = program->weights[op->weights[0]].rows;
        const uint64_t n = (rows + MMRT_GLU_ROWS - 1) / MMRT_GLU_ROWS;
        return (struct pieces){2, {MMRT_GLU_ROWS, MMRT_GLU_ROWS}, {n, n}, n};
    }
    for (; p.n_weights < 3 && op->weights[p.n_weights] >= 0; p.n_weights++) {
        const mmrt_weight *weight = &program->weights[op->weights[p.n_weights]];
        const uint64_t rows = mmrt_piece_rows(program, op, p.n_weights);
        p.rows[p.n_weights] = rows;
        p.n[p.n_weights] = (weight->rows + rows - 1) / rows;
        p.total += p.n[p.n_weights];
    }
    return p;
}

bool mmrt_program_shares(const mmrt_program *program, int32_t weight, int n_threads,
                         uint64_t *first_rows) {
    for (int32_t i = program->n_ops - 1; i >= 0; i--) {
        const mmrt_op *op = &program->ops[i];
        if (op->kind != MMRT_OP_LINEAR && op->kind != MMRT_OP_GLU && op->kind != MMRT_OP_LOGITS)
            continue;
        const struct pieces p = pieces_of(program, op);
        uint64_t before = 0; /* pieces of the weights before this one */
        int k = 0;
        for (; k < p.n_weights && op->weights[k] != weight; k++)
            if (op->kind != MMRT_OP_GLU)
                before += p.n[k];
        if (k < p.n_weights) {
            const uint64_t rows = program->weights[weight].rows;
            for (int thread = 0; thread <= n_threads; thread++) {
                const uint64_t piece = mmrt_share_first(p.total, thread, n_threads);
                const uint64_t row = piece < before ? 0 : (piece - before) * p.rows[k];
                first_rows[thread] = row < rows ? row : rows;
            }
            return true;
        }
    }
    return false;
}

void mmrt_op_linear(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t token = first_token(w), n = step->n - token;
    const struct pieces pieces = pieces_of(step->program, w->op);
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
        float *y = row_at(out, token) + out_row + first;
        const uint8_t *rows = rows_at(w, w->op->weights[i], first);
        if (!rows)
            return;
        multiply(step->program->kernels, step->program->exact, weight, rows, end - first, NULL, in,
                 token, n, y, out->k, w->scratch);
        rows_done(w, w->op->weights[i], first, end);
        complete(w, i, first, end - first, y, out->k, n);
    }
}

/* Few columns read rows faster than fetching ahead can change from gate to up and back: they take
 * twice as many at a time, unless threads would find too few pieces. */
static uint64_t glu_rows(const struct worker *w, const mmrt_weight *gate, size_t n) {
    const size_t few = w->step->program->kernels->few[gate->type];
    const bool twice =
        !w->in_order && n <= few && gate->rows >= (uint64_t)w->n_threads * 16 * 2 * MMRT_GLU_ROWS;
    return twice ? 2 * MMRT_GLU_ROWS : MMRT_GLU_ROWS;
}

void mmrt_op_glu(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const bool exact = step->program->exact;
    const mmrt_weight *gate = weight_at(step, w->op->weights[0]);
    const mmrt_weight *up = weight_at(step, w->op->weights[1]);
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t token = first_token(w), n = step->n - token;
    const uint64_t rows = glu_rows(w, gate, n);
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
        multiply(kernels, exact, gate, gate_rows, end - first, up_rows, in, token, n, gates, rows,
                 scratch);
        const uint8_t *next = gate_rows + (end - first) * row_bytes(gate);
        rows_done(w, w->op->weights[0], first, end);
        multiply(kernels, exact, up, up_rows, end - first, next, in, token, n, ups, rows, scratch);
        rows_done(w, w->op->weights[1], first, end);
        complete(w, 0, first, end - first, gates, rows, n);
        complete(w, 1, first, end - first, ups, rows, n);
        for (size_t t = 0; t < n; t++) {
            kernels->glu((enum mmrt_activation)w->op->activation, gates + t * rows, ups + t * rows,
                         row_at(out, token + t) + first, end - first);
            if (out->q)
                kernels->quantize(out, token + t, first, end - first);
        }
    }
}

void mmrt_op_logits(struct worker *w) {
    struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct pieces pieces = pieces_of(step->program, w->op);
    const uint64_t piece_rows = pieces.rows[0];
    const size_t n = step->n - step->first_output;
    const float cap = w->op->softcap;
    uint64_t piece;
    pieces_begin(w, pieces.total);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * piece_rows;
        const uint64_t end = first + piece_rows < weight->rows ? first + piece_rows : weight->rows;
        const uint8_t *rows = rows_at(w, w->op->weights[0], first);
        if (!rows)
            return;
        multiply(step->program->kernels, step->program->exact, weight, rows, end - first, NULL, in,
                 step->first_output, n, step->logits + first, weight->rows, w->scratch);
        rows_done(w, w->op->weights[0], first, end);
        complete(w, 0, first, end - first, step->logits + first, weight->rows, n);
        float zero = 0; /* stays so unless a logit is NaN or infinite */
        for (size_t t = 0; t < n; t++) {
            float *logits = step->logits + t * weight->rows;
            for (uint64_t r = first; r < end; r++) {
                zero += logits[r] * 0.0f;
                if (cap > 0)
                    logits[r] = cap * tanhf(logits[r] / cap);
            }
        }
        if (!(zero == 0))
            atomic_store(&step->not_finite, true);
    }
}

/* ---- one matrix on its own ---- */

struct product {
    const struct mmrt_kernels *kernels;
    const mmrt_weight *weight;
    struct mmrt_columns columns;
    size_t n;
    float *y;
    uint8_t *scratch;
    size_t scratch_bytes; /* of each thread */
    struct mmrt_run *runs;
};

static void product_job(void *context, int thread, int n_threads) {
    const struct product *p = context;
    const mmrt_weight *w = p->weight;
    const uint64_t rows = piece_rows(w, w->rows);
    uint64_t piece;
    mmrt_share_begin(p->runs, thread, n_threads, (w->rows + rows - 1) / rows);
    while (mmrt_share_next(p->runs, thread, n_threads, &piece)) {
        const uint64_t first = piece * rows;
        const uint64_t end = first + rows < w->rows ? first + rows : w->rows;
        multiply(p->kernels, false, w, (const uint8_t *)w->data + first * row_bytes(w), end - first,
                 NULL, &p->columns, 0, p->n, p->y + first, w->rows,
                 p->scratch + (size_t)thread * p->scratch_bytes);
    }
}

mmrt_isa mmrt_matmul_isa(mmrt_isa isa, uint32_t type) {
    return type < MMRT_TYPE_LIMIT ? mmrt_kernels_for(isa)->matrix_isa[type] : MMRT_ISA_REF;
}

mmrt_status mmrt_matmul(mmrt_pool *pool, mmrt_isa isa, const mmrt_weight *w, const float *x,
                        size_t n, float *y, mmrt_error *err) {
    const struct mmrt_format *format = mmrt_format_find(w->type);
    if (!format || !format->unpack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "%s: cannot multiply with type %s", w->name,
                         format ? format->name : "unknown");
    if (w->cols % format->elements)
        return mmrt_fail(err, MMRT_ARGUMENT, "%s: rows of %llu are not whole blocks of %s", w->name,
                         (unsigned long long)w->cols, format->name);
    if (!n || !w->rows || !w->cols) {
        memset(y, 0, n * w->rows * sizeof *y);
        return MMRT_OK;
    }
    const size_t n_threads = (size_t)mmrt_pool_threads(pool);
    const size_t few = n < MMRT_FEW ? n : MMRT_FEW;
    const size_t columns_bytes = mmrt_columns_bytes(n, w->cols, few);
    const struct mmrt_kernels *kernels = mmrt_kernels_for(isa);
    const size_t scratch_bytes = n > kernels->few[w->type] ? MMRT_MATMUL_SCRATCH : 0;
    const size_t bytes =
        n_threads * sizeof(struct mmrt_run) + columns_bytes + n_threads * scratch_bytes;
    uint8_t *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        return mmrt_fail(err, MMRT_NO_MEMORY, "%s: no memory to multiply by %zu columns", w->name,
                         n);
    memset(memory, 0, n_threads * sizeof(struct mmrt_run) + columns_bytes);
    struct product p = {.kernels = kernels, .weight = w, .n = n, .y = y};
    p.runs = (struct mmrt_run *)(void *)memory;
    uint8_t *columns = memory + n_threads * sizeof(struct mmrt_run);
    mmrt_columns_place(&p.columns, n, w->cols, few, columns);
    p.scratch = columns + columns_bytes;
    p.scratch_bytes = scratch_bytes;
    memcpy(p.columns.x, x, n * w->cols * sizeof *x);
    if (format->elements > 1)
        for (size_t c = 0; c < n; c++)
            p.kernels->quantize(&p.columns, c, 0, w->cols);
    mmrt_status status = mmrt_pool_run(pool, product_job, &p, err);
    free(memory);
    return status ? status : mmrt_bytes_check(w->data, w->rows * row_bytes(w), err);
}
