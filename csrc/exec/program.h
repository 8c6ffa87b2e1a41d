/* A program and one step of it, as the operations see them. */
#ifndef MMRT_EXEC_PROGRAM_H
#define MMRT_EXEC_PROGRAM_H

#include "mmrt.h"
#include "base/share.h"
#include "kernels/kernels.h"
#include "map/guard.h"
#include "stream/stream.h"

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

/* Attention of a single token over sections of its keys, before they are added up. */
enum { MMRT_ATTEND_SECTIONS = 16 };
struct sections {
    float *sums;    /* [key-value head][MMRT_ATTEND_SECTIONS][its query heads][head's room] */
    float *weights; /* likewise [2] */
};

/* Where a weight is when weights are streamed. Its rows are units of `unit_rows` each; the last may
 * have fewer. */
struct place {
    int32_t file;
    uint64_t offset;
    uint64_t unit_rows;
    int32_t *units; /* [n_units]: their numbers; NULL: it has none, as vectors have */
    int32_t n_units;
};

/* The part of a mapping that weights lie in. */
struct span {
    mmrt_mapping *mapping;
    uint64_t start, end; /* from the mapping's start, bytes */
};

struct mmrt_program {
    const struct mmrt_kernels *kernels;
    mmrt_kv_shape kv_shape;
    uint32_t max_tokens;
    bool exact; /* each token is computed as in a step of its own */
    mmrt_weight *weights;
    struct buffer *buffers;
    struct rope *ropes;
    mmrt_op *ops;
    struct span *spans; /* one a mapping */
    int32_t n_weights, n_buffers, n_ropes, n_ops, n_spans;
    uint64_t vocabulary;    /* rows of the EMBED weight: token ids are below it */
    uint64_t outputs;       /* rows of the LOGITS weight */
    mmrt_stream *stream;    /* NULL: all weights are on their mapped pages */
    struct place *places;   /* [n_weights] of them, with a stream */
    int32_t (*op_units)[2]; /* [n_ops]: the units that an operation reads, first and end */
    bool *in_order;         /* [n_ops]: some of them are not there when the step begins */
    uint8_t *row_scratch;   /* of each thread, row_scratch_bytes */
    size_t row_scratch_bytes;
    /* filled by mmrt_program_finish */
    int n_threads;
    uint8_t *memory; /* buffers and tables */
    struct sections sections;
    size_t memory_bytes;
    size_t thread_bytes; /* of each thread's scratch, at the end of `memory` */
    uint8_t *thread_scratch;
};

/* Tokens of a step that follow one another in one text. */
struct part {
    mmrt_kv *kv;
    uint32_t first; /* of the step's tokens */
    uint32_t n;
    uint64_t position; /* of the first */
};

/* One step, shared by its threads. */
struct step {
    const mmrt_program *program;
    mmrt_pool *pool;
    const struct part *parts; /* of these tokens, in turn */
    const int32_t *tokens;
    uint32_t n;            /* tokens */
    uint32_t first_output; /* logits are wanted from this token on */
    float *logits;
    mmrt_mark *marks;
    int32_t n_marks;
    mmrt_poll_fn *poll;
    void *poll_context;
    _Atomic int32_t last_op; /* the step ends after this operation */
    atomic_bool interrupted; /* because the poll asked for it; else because a read failed */
    bool forked; /* this is a child that the poll has forked: thread 0 is alone, and leaves */
    _Atomic uint64_t next; /* of operations in order: their number from 1 on, and the next piece */
    atomic_bool not_finite;
    /* Zero when a step begins, whatever became of the one before: a fork copies steps half done. */
    struct mmrt_run *runs;      /* [2][n_threads]: of operations in turn */
    atomic_uint *sections_done; /* [key-value head]: tasks of attention that are */
};

/* What one thread works on. */
struct worker {
    struct step *step;
    const mmrt_op *op;
    int thread;
    int n_threads;
    struct mmrt_run *runs; /* of this operation */
    bool in_order;         /* so is this operation */
    uint64_t n_pieces;
    double polled; /* when thread 0 last asked the caller */
    void *scratch; /* of this thread */
};

/* The part that holds a token which lies in `part` or in one after it. */
static inline const struct part *part_from(const struct part *part, size_t token) {
    while (token >= (size_t)part->first + part->n)
        part++;
    return part;
}

static inline uint64_t position_of(const struct part *part, size_t token) {
    return part->position + (token - part->first);
}

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

/* The step ends after operation `op`; the earliest counts. */
static inline void end_after(struct step *step, int32_t op) {
    int32_t last = atomic_load(&step->last_op);
    while (op < last && !atomic_compare_exchange_weak(&step->last_op, &last, op))
        ;
}

/* Between polls; asking the caller costs it a lock. */
#define MMRT_POLL_SECONDS 0.05

/* Asks the caller whether to go on; if not, the step ends after operation `last`, which no thread
 * must have left. */
void mmrt_poll_caller(struct worker *w, int32_t last);

/* The operation's work, in pieces that threads take until none is left. Where weights are still on
 * their way, pieces are taken in order by all threads, so that what comes first is used first. */
static inline void pieces_begin(struct worker *w, uint64_t n_pieces) {
    w->n_pieces = n_pieces;
    if (!w->in_order)
        mmrt_share_begin(w->runs, w->thread, w->n_threads, n_pieces);
}

bool mmrt_next_in_order(struct worker *w, uint64_t *piece);

static inline bool pieces_next(struct worker *w, uint64_t *piece) {
    return w->in_order ? mmrt_next_in_order(w, piece)
                       : mmrt_share_next(w->runs, w->thread, w->n_threads, piece);
}

/* Rows of a weight from `first` on, up to the end of its unit; waits until they are there. NULL:
 * the step ends with this operation. To be given back by rows_done. */
const uint8_t *mmrt_streamed_rows(struct worker *w, int32_t weight, uint64_t first);
void mmrt_streamed_rows_done(const struct worker *w, int32_t weight, uint64_t first, uint64_t end);

static inline const uint8_t *rows_at(struct worker *w, int32_t index, uint64_t first) {
    const mmrt_weight *weight = weight_at(w->step, index);
    return w->in_order ? mmrt_streamed_rows(w, index, first)
                       : (const uint8_t *)weight->data + first * row_bytes(weight);
}

static inline void rows_done(const struct worker *w, int32_t index, uint64_t first, uint64_t end) {
    if (w->in_order)
        mmrt_streamed_rows_done(w, index, first, end);
}

/* One row of a weight, wherever it is, until this thread asks for the next. NULL as above. */
const uint8_t *mmrt_row_at(struct worker *w, int32_t weight, uint64_t row);

/* Frees what streaming has taken. */
void mmrt_streamed_free(mmrt_program *program);

/* Begins a pass over the program's stream, and finds which operations are in order. */
mmrt_status mmrt_streamed_begin(const mmrt_program *program, mmrt_error *err);

/* The tokens that this operation works on start here. */
static inline uint32_t first_token(const struct worker *w) {
    return w->op->outputs_only ? w->step->first_output : 0;
}

/* ARGUMENT unless each operation finds in its buffers what others before it have written. */
mmrt_status mmrt_program_check_flow(const mmrt_program *program, mmrt_error *err);

typedef void op_fn(struct worker *w);
#define MMRT_OP(name, function, meaning) op_fn mmrt_op_##function;
#include "exec/ops.def"
#undef MMRT_OP

/* Gives scratch back to the system between two steps, to be taken again as it is touched. */
void mmrt_program_rest(const mmrt_program *program);

/* Bytes of scratch that a thread needs to attend. */
size_t mmrt_attend_op_scratch(const mmrt_program *program);

/* Rows of a gated unit in a piece of work. */
enum { MMRT_GLU_ROWS = 64 };

/* Rows that a piece of an operation's weight has, of the three that it may have. */
uint64_t mmrt_piece_rows(const mmrt_program *program, const mmrt_op *op, int weight);

#endif
