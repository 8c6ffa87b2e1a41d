/* What operations find in their buffers: each reads only what others before it have written in the
 * same step, so that nothing of an earlier step is taken for it. */
#include "exec/program.h"

#include "base/status.h"

#include <stdlib.h>

/* For which of the step's tokens: those whose logits are wanted, or all. */
enum extent { NOTHING, OUTPUTS, ALL };

struct content {
    enum extent values, quantised;
    int32_t layer; /* of the heads that ROPE has rotated there, and stored, plus 1; 0: of none */
};

static enum extent extent_of(const mmrt_op *op) {
    return op->outputs_only || op->kind == MMRT_OP_LOGITS ? OUTPUTS : ALL;
}

static mmrt_status read(const mmrt_program *program, const struct content *contents,
                        const mmrt_op *op, int32_t buffer, bool quantised, mmrt_error *err) {
    const struct content *content = &contents[buffer];
    const enum extent wanted = extent_of(op);
    const int number = (int)(op - program->ops);
    if (content->values < wanted)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "operation %d reads buffer %d, which none before it has written%s", number,
                         buffer, content->values ? " for all tokens" : "");
    if (quantised && content->quantised < wanted)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "operation %d reads buffer %d quantised, which none before it has "
                         "quantised%s",
                         number, buffer, content->quantised ? " for all tokens" : "");
    return MMRT_OK;
}

static void write(struct content *contents, const mmrt_op *op, int32_t buffer, bool quantised) {
    const enum extent extent = extent_of(op);
    contents[buffer] = (struct content){extent, quantised ? extent : NOTHING, 0};
}

/* Whether one of the operation's matrices is multiplied with quantised columns. */
static bool reads_quantised(const mmrt_program *program, const mmrt_op *op) {
    for (int i = 0; i < 3 && op->weights[i] >= 0; i++)
        if (mmrt_format_find(program->weights[op->weights[i]].type)->elements > 1)
            return true;
    return false;
}

static mmrt_status check_multiply(const mmrt_program *program, struct content *contents,
                                  const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = read(program, contents, op, op->in, reads_quantised(program, op), err);
    if (!status && op->kind != MMRT_OP_LOGITS)
        write(contents, op, op->out, op->kind == MMRT_OP_GLU);
    return status;
}

static mmrt_status check_norm(const mmrt_program *program, struct content *contents,
                              const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = read(program, contents, op, op->stream, false, err);
    if (!status && op->in >= 0) {
        status = read(program, contents, op, op->in, false, err);
        if (op->weights[1] >= 0) /* it is normed in its place */
            write(contents, op, op->in, false);
        write(contents, op, op->stream, false);
    }
    if (op->out >= 0)
        write(contents, op, op->out, true);
    return status;
}

static mmrt_status check_heads(const mmrt_program *program, struct content *contents,
                               const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = read(program, contents, op, op->in, false, err);
    if (!status && op->kind == MMRT_OP_ATTEND && contents[op->in].layer != op->layer + 1)
        status = mmrt_fail(err, MMRT_ARGUMENT,
                           "operation %d attends to layer %d, whose keys and values no ROPE has "
                           "stored from buffer %d",
                           (int)(op - program->ops), op->layer, op->in);
    const bool whole_groups = mmrt_kv_head_room(program->kv_shape) % MMRT_GROUP == 0;
    write(contents, op, op->out, op->kind == MMRT_OP_ATTEND && whole_groups);
    if (op->kind == MMRT_OP_ROPE)
        contents[op->out].layer = op->layer + 1;
    return status;
}

static mmrt_status check(const mmrt_program *program, struct content *contents, const mmrt_op *op,
                         mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    const bool meet = op->kind == MMRT_OP_LINEAR || op->kind == MMRT_OP_GLU ||
                      op->kind == MMRT_OP_ATTEND; /* each thread reads what others write */
    if (meet && op->in == op->out)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d both reads and writes buffer %d",
                         (int)(op - program->ops), op->in);
    switch (op->kind) {
    case MMRT_OP_EMBED: write(contents, op, op->out, false); break;
    case MMRT_OP_NORM: return check_norm(program, contents, op, err);
    case MMRT_OP_LINEAR:
    case MMRT_OP_GLU:
    case MMRT_OP_LOGITS: return check_multiply(program, contents, op, err);
    case MMRT_OP_ROPE:
    case MMRT_OP_ATTEND: return check_heads(program, contents, op, err);
    case MMRT_OP_JOIN:
        status = read(program, contents, op, op->in, false, err);
        write(contents, op, op->out, true);
    }
    return status;
}

mmrt_status mmrt_program_check_flow(const mmrt_program *program, mmrt_error *err) {
    const int32_t last = program->n_ops - 1;
    if (last < 1 || program->ops[0].kind != MMRT_OP_EMBED ||
        program->ops[last].kind != MMRT_OP_LOGITS)
        return mmrt_fail(err, MMRT_ARGUMENT, "a program begins with EMBED and ends with LOGITS");
    struct content *contents = calloc((size_t)program->n_buffers, sizeof *contents);
    if (!contents)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a program");
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i <= last; i++) {
        const mmrt_op *op = &program->ops[i];
        if (op->kind == MMRT_OP_LOGITS && i < last)
            status = mmrt_fail(err, MMRT_ARGUMENT, "operation %d: LOGITS is the last one", i);
        else
            status = check(program, contents, op, err);
    }
    free(contents);
    return status;
}
