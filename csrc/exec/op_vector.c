/* Operations on single tokens: embedding, norm, joining of heads. */
#include "exec/program.h"

#include <string.h>

/* Tokens [*begin, *end) are this thread's. */
static void token_range(const struct worker *w, uint32_t *begin, uint32_t *end) {
    uint64_t first = first_token(w), n = w->step->n - first;
    *begin = (uint32_t)(first + n * (uint64_t)w->thread / (uint64_t)w->n_threads);
    *end = (uint32_t)(first + n * (uint64_t)(w->thread + 1) / (uint64_t)w->n_threads);
}

static void quantize_row(const struct step *step, const struct mmrt_columns *columns,
                         size_t token) {
    if (columns->q)
        step->program->kernels->quantize(columns, token, 0, columns->k);
}

void mmrt_op_embed(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const struct mmrt_format *format = mmrt_format_find(weight->type);
    uint32_t begin, end;
    token_range(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *row = row_at(out, t);
        const uint8_t *blocks = mmrt_row_at(w, w->op->weights[0], (uint64_t)step->tokens[t]);
        if (!blocks)
            return;
        format->unpack(blocks, row, out->k);
        for (size_t i = 0; i < out->k; i++)
            row[i] *= w->op->scale;
    }
}

/* stream += in, or stream += norm(in) * weights[1] where there is that weight (norms after a
 * sub-layer); out = norm(stream) * weights[0]. */
void mmrt_op_norm(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_kernels *kernels = step->program->kernels;
    const mmrt_op *op = w->op;
    const struct mmrt_columns *stream = columns_at(step, op->stream);
    const struct mmrt_columns *out = op->out >= 0 ? columns_at(step, op->out) : NULL;
    uint32_t begin, end;
    token_range(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *sum = row_at(stream, t);
        if (op->in >= 0) {
            float *in = row_at(columns_at(step, op->in), t);
            if (op->weights[1] >= 0)
                kernels->rms_norm(in, weight_at(step, op->weights[1])->data, op->eps, in,
                                  stream->k);
            kernels->add(sum, in, stream->k);
        }
        if (out) {
            kernels->rms_norm(sum, weight_at(step, op->weights[0])->data, op->eps, row_at(out, t),
                              out->k);
            quantize_row(step, out, t);
        }
    }
}

/* `in` may be `out`, where heads have no padding. */
void mmrt_op_join(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const size_t n_heads = (size_t)w->op->n_heads;
    const size_t dim = out->k / n_heads, room = in->k / n_heads;
    uint32_t begin, end;
    token_range(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        for (size_t h = 0; h < n_heads && in != out; h++)
            memcpy(row_at(out, t) + h * dim, row_at(in, t) + h * room, dim * sizeof(float));
        quantize_row(step, out, t);
    }
}
