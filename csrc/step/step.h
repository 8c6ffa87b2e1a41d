/* One step of a program, as its threads and operations see it.
 *
 * Every thread walks the list of operations, with a barrier after each. The tokens of a step are in
 * such an order that those whose logits are wanted come last. */
#ifndef MMRT_STEP_STEP_H
#define MMRT_STEP_STEP_H

#include "base/share.h"
#include "graph/op.h"
#include "graph/program.h"

/* Tokens of a step that follow one another in one text. */
struct part {
    mmrt_state *state;
    uint32_t first; /* of the step's tokens */
    uint32_t n;
    uint64_t position;       /* of the first */
    bool begins;             /* no other part of the step comes before it in its text */
    const struct part *next; /* where its text goes on in the step; NULL: nowhere */
};

/* Shared by the step's threads. */
struct step {
    const mmrt_program *program;
    mmrt_pool *pool;
    const struct part *parts; /* of these tokens, in turn */
    const int32_t *tokens;
    uint32_t n;            /* tokens */
    uint32_t first_output; /* logits are wanted from this token on; n: of none */
    bool exact;            /* each token is computed as in a step of its own */
    const float *rows;     /* hidden rows of the tokens, for TAKE */
    float *logits;         /* or the hidden rows that GIVE writes */
    mmrt_mark *marks;
    int32_t n_marks;
    int32_t *choices; /* of ROUTE operations, one after another: [n][n_used]; NULL: not asked for */
    mmrt_poll_fn *poll;
    void *poll_context;
    _Atomic int32_t last_op; /* the step ends after this operation */
    atomic_bool interrupted; /* because the poll asked for it; else because a read failed */
    bool forked; /* this is a child that the poll has forked: thread 0 is alone, and leaves */
    _Atomic uint64_t next; /* of operations in order: their number from 1 on, and the next piece */
    atomic_bool not_finite;
    /* Zero when a step begins, whatever became of the one before: a fork copies steps half done. */
    struct mmrt_run *runs; /* [2][n_threads]: of operations in turn */
    atomic_uint *counters; /* [n_counters] of the program: zero when an operation begins */
};

/* What one thread works on. */
struct worker {
    struct step *step;
    const mmrt_op *op;
    int thread;
    int n_threads;
    struct mmrt_run *runs; /* of this operation */
    bool in_order;         /* some of its weights are on their way: pieces are taken in order */
    uint64_t n_pieces;
    double polled; /* when thread 0 last asked the caller */
    void *scratch; /* of this thread */
};

/* ---- tokens ---- */

/* The tokens that this operation works on start here. */
static inline uint32_t first_token(const struct worker *w) {
    return w->op->outputs_only ? w->step->first_output : 0;
}

/* Tokens [*begin, *end) are this thread's, where tokens are shared out one by one. */
static inline void tokens_of_thread(const struct worker *w, uint32_t *begin, uint32_t *end) {
    const uint64_t first = first_token(w), n = w->step->n - first;
    *begin = (uint32_t)(first + mmrt_share_first(n, w->thread, w->n_threads));
    *end = (uint32_t)(first + mmrt_share_first(n, w->thread + 1, w->n_threads));
}

/* The part that holds a token which lies in `part` or in one after it. */
static inline const struct part *part_from(const struct part *part, size_t token) {
    while (token >= (size_t)part->first + part->n)
        part++;
    return part;
}

static inline uint64_t position_of(const struct part *part, size_t token) {
    return part->position + (token - part->first);
}

/* ---- what an operation reads and writes ---- */

static inline const mmrt_weight *weight_at(const struct step *step, int32_t index) {
    return &step->program->weights[index];
}

static inline const struct mmrt_columns *columns_at(const struct step *step, int32_t index) {
    return &step->program->buffers[index].columns;
}

static inline float *row_at(const struct mmrt_columns *columns, size_t token) {
    return columns->x + token * columns->k;
}

static inline void quantize_row(const struct step *step, const struct mmrt_columns *columns,
                                size_t token) {
    if (columns->q)
        step->program->kernels->quantize(columns, token, 0, columns->k);
}

/* ---- how a step ends early ---- */

static inline int32_t number_of(const struct worker *w) {
    return (int32_t)(w->op - w->step->program->ops);
}

/* The step ends after operation `op`; the earliest counts. */
static inline void end_after(struct step *step, int32_t op) {
    int32_t last = atomic_load(&step->last_op);
    while (op < last && !atomic_compare_exchange_weak(&step->last_op, &last, op))
        ;
}

/* Between polls; asking the caller costs it a lock. */
#define MMRT_POLL_SECONDS 0.05

double mmrt_step_seconds(void);

/* Asks the caller whether to go on; if not, the step ends after operation `last`, which no thread
 * must have left. */
void mmrt_poll_caller(struct worker *w, int32_t last);

#endif
