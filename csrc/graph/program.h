/* A program: its weights, buffers and operations, as the code that builds or runs it sees them. */
#ifndef MMRT_GRAPH_PROGRAM_H
#define MMRT_GRAPH_PROGRAM_H

#include "mmrt.h"
#include "kernels/kernels.h"
#include "kernels/multiply.h"
#include "source/neurons.h"
#include "source/source.h"
#include "state/state.h"

/* For which of a step's tokens something is done: those whose logits are wanted, or all. */
enum extent { NO_TOKENS, OUTPUTS, ALL_TOKENS };

struct buffer {
    struct mmrt_columns columns; /* of max_tokens * per_token; q is NULL unless quantised */
    uint32_t per_token;          /* columns */
    bool quantised;              /* a quantised weight reads it */
    bool any_column;             /* matvec reads any of its columns, and not the last alone */
    /* State after the operations added so far: */
    enum extent written, written_quantised;
    int32_t heads_of;   /* layer whose ROPE has rotated these heads, plus 1; 0: none */
    int32_t choices_of; /* so many of these experts has ROUTE chosen for each token; 0: none */
    uint32_t n_experts;
};

struct rope {
    uint32_t n_pairs;
    float magnitude;
    double *frequencies; /* [n_pairs] */
    float *table;        /* [max_tokens][n_pairs][2]: cosine, sine of this step's positions */
};

/* The part of a mapping that weights lie in. */
struct span {
    mmrt_mapping *mapping;
    uint64_t start, end; /* from the mapping's start, bytes */
};

/* Where a weight is when weights are streamed. Its rows are units of `unit_rows` each; the last may
 * have fewer. Those of a stack are its matrices. */
struct place {
    int32_t file;
    uint64_t offset;
    uint64_t unit_rows;
    int32_t *units; /* [n_units]: their numbers; NULL: it has none, as vectors have */
    int32_t n_units;
};

/* Stacks of experts that one choice is for. */
struct experts {
    int32_t weights[4]; /* in the order of their use */
    int32_t n_weights;
    int32_t n_together; /* of these: the first operation multiplies by so many */
    int32_t n_used;     /* of each token */
};

/* So many of a step's last tokens say which experts stay in memory. */
enum { MMRT_RECENT_TOKENS = 16 };

/* Weights as units that a budget keeps or streams. */
struct units {
    mmrt_source *source;
    mmrt_neurons *neurons;   /* NULL: no operation has columns */
    int32_t *op_columns;     /* [n_ops]: the table of its columns; -1: none */
    struct place *places;    /* [n_weights] */
    int32_t (*op_units)[2];  /* [n_ops]: the units that an operation reads, first and end */
    bool *in_order;          /* [n_ops]: some of them are not there when the step begins */
    struct experts *experts; /* [n_experts]: of each layer that has some */
    int32_t n_experts;
    int32_t *op_experts;  /* [n_ops]: whose choices an operation reads; -1: none */
    uint32_t *wanted;     /* those that the layer's tokens have chosen, in the order of their use */
    uint32_t *recent;     /* [MMRT_RECENT_TOKENS][n_used]: what its last tokens have chosen */
    bool reads_rows;      /* a budget was set: rows of tables are not taken from mapped pages */
    uint8_t *row_scratch; /* of each thread, row_scratch_bytes: for single rows */
    size_t row_scratch_bytes;
};

struct mmrt_program {
    const struct mmrt_kernels *kernels;
    mmrt_state_store *store; /* of the sequences that it reads */
    uint32_t max_tokens;
    bool exact; /* each token is computed as in a step of its own */
    mmrt_weight *weights;
    struct buffer *buffers;
    struct rope *ropes;
    mmrt_op *ops;
    struct span *spans; /* one a mapping */
    int32_t n_weights, n_buffers, n_ropes, n_ops, n_spans;
    uint64_t vocabulary; /* rows of the EMBED weight: token ids are below it */
    uint64_t taken;      /* values of the rows that TAKE reads; 0: it begins with EMBED */
    uint64_t outputs;    /* rows of the LOGITS weight, or values of the rows that GIVEs write */
    uint64_t positions;  /* that there are embeddings of; 0: positions have none */
    struct units *units; /* NULL: all weights are on their mapped pages */
    /* filled by mmrt_program_finish */
    int n_threads;
    uint8_t *memory; /* all that follows */
    size_t memory_bytes;
    size_t token_bytes;      /* of buffers and tables, which come first */
    uint8_t *shared;         /* scratch of an operation, for all threads together */
    uint8_t *thread_scratch; /* of each thread, thread_bytes */
    size_t thread_bytes;
    size_t n_counters; /* that a step has for its operations */
};

static inline uint64_t width_of(const mmrt_program *program, int32_t buffer) {
    return program->buffers[buffer].columns.k;
}

/* Of all its matrices. */
static inline uint64_t mmrt_all_rows(const mmrt_weight *w) {
    return w->stack > 1 ? w->stack * w->rows : w->rows;
}

static inline mmrt_source *source_of(const mmrt_program *program) {
    return program->units ? program->units->source : NULL;
}

/* Gives scratch back to the system between two steps, to be taken again as it is touched. */
void mmrt_program_release_scratch(const mmrt_program *program);

/* Frees what mmrt_program_stream has made. */
void mmrt_units_free(mmrt_program *program);

/* Why a step's weights did not come, naming the tensor. */
mmrt_status mmrt_units_error(const mmrt_program *program, mmrt_error *err);

#endif
