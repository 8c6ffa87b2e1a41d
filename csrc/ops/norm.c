/* Adding to the stream, and norming it for what reads it next. They are one operation, as both pass
 * over the same row while it is in the cache. Without a norm the stream
 * itself is read next, and quantised for that. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

/* What is added may be normed in parts, each by the same weight. */
static uint64_t width_of_part(const mmrt_program *program, const mmrt_op *op) {
    const uint64_t width = width_of(program, op->stream);
    return op->n_groups > 1 ? width / (uint64_t)op->n_groups : width;
}

static mmrt_status check_widths(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t width = width_of(program, op->stream);
    if ((op->in >= 0 && width_of(program, op->in) != width) ||
        (op->out >= 0 && width_of(program, op->out) != width) ||
        (op->n_groups > 1 && width % (uint64_t)op->n_groups))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    mmrt_status status = MMRT_OK;
    if (op->out >= 0)
        status = mmrt_check_vector(program, op->weights[0], width, err);
    if (!status && op->biases[0] >= 0)
        status = mmrt_check_vector(program, op->biases[0], width, err);
    if (!status && op->weights[1] >= 0)
        status = mmrt_check_vector(program, op->weights[1], width_of_part(program, op), err);
    return status;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const bool adds = op->in >= 0, norms = op->out >= 0;
    mmrt_status status = mmrt_check_buffer(program, op->stream, err);
    if (!status && adds)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status && norms)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = check_widths(program, op, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status && adds)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    if (adds && (op->weights[1] >= 0 || op->scale != 1)) /* it changes in its place */
        mmrt_note_write(program, op, op->in, false);
    if (adds || !norms || op->gain != 1)
        mmrt_note_write(program, op, op->stream, !norms);
    if (norms)
        mmrt_note_write(program, op, op->out, true);
    return MMRT_OK;
}

/* stream += in * scale, or stream += norm(in) * weights[1] * scale where there is that weight
 * (norms after a sub-layer); stream *= gain; out = norm(stream) * weights[0] + its bias, if any, of
 * the stream less its mean if centred. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_op *op = w->op;
    const struct mmrt_columns *stream = columns_at(step, op->stream);
    const struct mmrt_columns *out = op->out >= 0 ? columns_at(step, op->out) : NULL;
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *sum = row_at(stream, t);
        if (op->in >= 0) {
            float *in = row_at(columns_at(step, op->in), t);
            const uint64_t part = width_of_part(step->program, op);
            for (size_t i = 0; op->weights[1] >= 0 && i < stream->k; i += part)
                kernels->rms_norm(in + i, weight_at(step, op->weights[1])->data, op->eps, in + i,
                                  part);
            for (size_t i = 0; op->scale != 1 && i < stream->k; i++)
                in[i] *= op->scale;
            kernels->add(sum, in, stream->k);
        }
        for (size_t i = 0; op->gain != 1 && i < stream->k; i++)
            sum[i] *= op->gain;
        if (out) {
            const float *normed = sum;
            if (op->centred) {
                kernels->centre(sum, row_at(out, t), out->k);
                normed = row_at(out, t);
            }
            kernels->rms_norm(normed, weight_at(step, op->weights[0])->data, op->eps,
                              row_at(out, t), out->k);
            if (op->biases[0] >= 0)
                kernels->add(row_at(out, t), weight_at(step, op->biases[0])->data, out->k);
        }
        quantize_row(step, out ? out : stream, t);
    }
}

const struct op_info mmrt_op_norm = {
    .name = "norm",
    .roles = {VECTOR, VECTOR},
    .check = check,
    .run = run,
};
