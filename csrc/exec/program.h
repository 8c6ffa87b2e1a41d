/* A program and one step of it, as the operations see them. */
#ifndef MMRT_EXEC_PROGRAM_H
#define MMRT_EXEC_PROGRAM_H

#include "mmrt.h"
#include "base/share.h"
#include "kernels/kernels.h"

struct buffer {
    struct mmrt_columns columns; /* of max_tokens; q is NULL unless quantised */
    bool quantised;              /* a quantised weight reads it */
};

struct rope {
    uint32_t n_pairs;
    float magnitude;
    double *frequencies; /* [n_pairs] */
    float *table;        /* [max_tokens][n_pairs][2]: cosine, sine of this step's positions */
};

struct mmrt_program {
    const struct mmrt_kernels *kernels;
    mmrt_kv_shape kv_shape;
    uint32_t max_tokens;
    mmrt_weight *weights;
    struct buffer *buffers;
    struct rope *ropes;
    mmrt_op *ops;
    int32_t n_weights, n_buffers, n_ropes, n_ops;
    uint64_t vocabulary; /* rows of the EMBED weight: token ids are below it */
    uint64_t outputs;    /* rows of the LOGITS weight */
    /* filled by mmrt_program_finish */
    int n_threads;
    uint8_t *memory; /* buffers and tables */
    size_t memory_bytes;
    size_t thread_bytes; /* of each thread's scratch, at the end of `memory` */
    uint8_t *thread_scratch;
    struct mmrt_run *runs; /* [2][n_threads] */
};

/* One step, shared by its threads. */
struct step {
    const mmrt_program *program;
    mmrt_pool *pool;
    mmrt_kv *kv;
    const int32_t *tokens;
    uint32_t n;            /* tokens */
    uint32_t first_output; /* logits are wanted from this token on */
    uint64_t position;     /* of token 0 */
    float *logits;
    mmrt_mark *marks;
    int32_t n_marks;
    mmrt_poll_fn *poll;
    void *poll_context;
    _Atomic int32_t last_op; /* the step ends after this operation: the poll asked for it */
    atomic_bool not_finite;
};

/* What one thread works on. */
struct worker {
    struct step *step;
    const mmrt_op *op;
    int thread;
    int n_threads;
    struct mmrt_run *runs; /* of this operation */
    void *scratch;         /* of this thread */
};

/* Where a weight is when an operation needs it: on its mapped pages. */
static inline const mmrt_weight *weight_at(const struct step *step, int32_t index) {
    return &step->program->weights[index];
}

static inline const struct mmrt_columns *columns_at(const struct step *step, int32_t index) {
    return &step->program->buffers[index].columns;
}

static inline float *row_at(const struct mmrt_columns *columns, size_t token) {
    return columns->x + token * columns->k;
}

/* Bytes between the rows of a weight. */
static inline size_t row_bytes(const mmrt_weight *w) {
    const struct mmrt_format *format = mmrt_format_find(w->type);
    return w->cols / format->elements * format->bytes;
}

/* The tokens that this operation works on start here. */
static inline uint32_t first_token(const struct worker *w) {
    return w->op->outputs_only ? w->step->first_output : 0;
}

typedef void op_fn(struct worker *w);
#define MMRT_OP(name, function, meaning) op_fn mmrt_op_##function;
#include "exec/ops.def"
#undef MMRT_OP

/* rows [first_row, end_row) of w times n columns: one by one the row kernel, more by panels. */
void mmrt_multiply(const struct mmrt_kernels *kernels, const mmrt_weight *w, uint64_t first_row,
                   uint64_t end_row, const struct mmrt_columns *x, size_t first_column, size_t n,
                   float *y, size_t y_stride, void *scratch);

/* Rows of a gated unit in a piece of work. */
enum { MMRT_GLU_ROWS = 64 };

/* Rows that one piece of a multiplication should have: enough to amortise taking it, a multiple of
 * `unit`. */
uint64_t mmrt_piece_rows(const mmrt_weight *w, uint64_t unit);

#endif
