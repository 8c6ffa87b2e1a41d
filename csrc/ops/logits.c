/* The last matrix, into the caller's memory. */
#include "base/status.h"
#include "graph/check.h"
#include "graph/pieces.h"
#include "ops/multiply.h"
#include "step/rows.h"

#include <math.h>

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    if (!op->outputs_only)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: LOGITS works on outputs only",
                         program->n_ops);
    if (program->outputs)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: LOGITS or GIVE is the last one",
                         program->n_ops);
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_matrix(program, op, 0, program->vocabulary, err);
    const bool quantised = !status && mmrt_reads_quantised(program, op);
    if (!status)
        status = mmrt_check_read(program, op, op->in, quantised, err);
    if (status)
        return status;
    mmrt_note_read(program, op->in, quantised);
    program->outputs = program->weights[op->weights[0]].rows;
    return MMRT_OK;
}

static void run(struct worker *w) {
    struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct pieces pieces = mmrt_pieces_of(step->program, w->op);
    const size_t n = step->n - step->first_output;
    const float cap = w->op->softcap, scale = w->op->scale;
    uint64_t piece;
    pieces_begin(w, pieces.total);
    while (pieces_next(w, &piece)) {
        const uint64_t first = piece * pieces.rows[0], after = first + pieces.rows[0];
        const uint64_t end = after < weight->rows ? after : weight->rows;
        const uint8_t *rows = rows_at(w, w->op->weights[0], first);
        if (!rows)
            return;
        mmrt_op_multiply(w, 0, rows, first, end - first, NULL, step->logits + first, weight->rows,
                         w->scratch);
        rows_done(w, w->op->weights[0], first, end);
        float zero = 0; /* stays so unless a logit is NaN or infinite */
        for (size_t t = 0; t < n; t++) {
            float *logits = step->logits + t * weight->rows;
            for (uint64_t r = first; scale != 1 && r < end; r++)
                logits[r] *= scale;
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

const struct op_info mmrt_op_logits = {
    .name = "logits",
    .roles = {MATRIX},
    .check = check,
    .thread_scratch = mmrt_op_multiply_scratch,
    .run = run,
};
