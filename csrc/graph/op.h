/* The description of a kind of operation. Each kind is described once, in its own file in csrc/ops;
 * other code that handles operations reads these descriptions and does not know the kinds. */
#ifndef MMRT_GRAPH_OP_H
#define MMRT_GRAPH_OP_H

#include "mmrt.h"

struct worker; /* one thread in one step: step/step.h */

/* How an operation uses one of its weights. */
enum weight_role {
    NO_WEIGHT,
    VECTOR,  /* float32, used where it lies */
    MATRIX,  /* multiplied with, its rows shared out among threads */
    TABLE,   /* read by single rows */
    STACK,   /* matrices; only the chosen ones are multiplied with */
    OTHERS,  /* another operation's matrix, whose shape and type alone are used */
    COLUMNS, /* of the matrix before it, of which a step of one token multiplies some */
};

struct op_info {
    const char *name;
    enum weight_role roles[3];
    bool side_by_side; /* the same rows of all its matrices are multiplied together */

    /* Whether the operation can be the program's next, by shapes and by what those before it have
     * written; notes what it needs, and what it writes. A check that fails notes nothing. */
    mmrt_status (*check)(mmrt_program *program, const mmrt_op *op, mmrt_error *err);

    /* Bytes of scratch that each thread needs for it, and that threads share; NULL: none. */
    size_t (*thread_scratch)(const mmrt_program *program, const mmrt_op *op);
    size_t (*shared_scratch)(const mmrt_program *program, const mmrt_op *op);

    /* Bytes from where a neuron begins in its COLUMNS to the end of what a step of one token may
     * read of it in place of the operation's matrices; NULL: nothing. */
    uint64_t (*neuron_bytes)(const mmrt_program *program, const mmrt_op *op);

    /* How many counters that start at zero it needs in a step, and leaves at zero; NULL: none. */
    size_t (*counters)(const mmrt_program *program, const mmrt_op *op);

    /* This thread's part of the work. */
    void (*run)(struct worker *w);
};

#define MMRT_OP(NAME, name, meaning) extern const struct op_info mmrt_op_##name;
#include "graph/ops.def"

/* NULL for a kind that is unknown. */
const struct op_info *mmrt_op_info(mmrt_op_kind kind);

#endif
