/* Heads of queries, keys and values as ROPE reads them, of those where a gate lies behind each
 * query: [query, gate] for each head, then the rest. HEAD_GATE uses the gates. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "step/step.h"

#include <string.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_layer(program, op, err);
    if (!status)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (status)
        return status;
    const uint64_t gates = (uint64_t)op->n_heads * mmrt_layer_of(program, op)->spec.k_dim;
    const uint64_t in = width_of(program, op->in), out = width_of(program, op->out);
    if (op->n_heads < 1 || out < gates || in != out + gates)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_note_write(program, op, op->out, false);
    return MMRT_OK;
}

static void run(struct worker *w) {
    const struct mmrt_columns *in = columns_at(w->step, w->op->in);
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    const size_t dim = mmrt_layer_of(w->step->program, w->op)->spec.k_dim;
    const size_t n_heads = (size_t)w->op->n_heads, queries = n_heads * dim;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const float *from = row_at(in, t);
        float *to = row_at(out, t);
        for (size_t head = 0; head < n_heads; head++)
            memcpy(to + head * dim, from + 2 * head * dim, dim * sizeof *to);
        memcpy(to + queries, from + 2 * queries, (out->k - queries) * sizeof *to);
    }
}

const struct op_info mmrt_op_split = {
    .name = "split",
    .check = check,
    .run = run,
};
