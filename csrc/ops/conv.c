/* A short causal convolution of each channel, of which the layer's block keeps the latest inputs:
 * [taps - 1][channels], the oldest first.
 *
 * gated: the operation reads for each token a factor before, a factor after, and a value for every
 * channel, and convolves the first factor times the value (Liquid AI 2025, arXiv:2511.23404). Else
 * it convolves what it reads, from element `first` of each token on, and SiLU follows. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/blocks.h"

#include <string.h>

static uint64_t taps_of(const mmrt_program *program, const mmrt_op *op) {
    return program->weights[op->weights[0]].cols;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (status)
        return status;
    const uint64_t in = width_of(program, op->in), n = width_of(program, op->out);
    const bool fits =
        op->gated ? in == 3 * n && !op->first : op->first >= 0 && in >= (uint64_t)op->first + n;
    if (!fits || op->outputs_only)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    if (op->weights[0] < 0 || op->weights[0] >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: a weight is missing", program->n_ops);
    status = mmrt_check_floats(program, op->weights[0], n, taps_of(program, op), err);
    if (!status && op->biases[0] >= 0)
        status = mmrt_check_vector(program, op->biases[0], n, err);
    if (!status)
        status = mmrt_check_block(program, op, (taps_of(program, op) - 1) * n, err);
    if (!status)
        mmrt_note_write(program, op, op->out, true);
    return status;
}

/* What a thread works on: `n` channels from `first` on. */
struct slice {
    const float *taps;    /* [n_taps][n], that of the oldest input first */
    const float *bias;    /* [n], or NULL */
    float *inputs;        /* [n_taps][n]: input number i is row i % n_taps */
    size_t first, n, all; /* channels; of how many */
    size_t n_taps;
};

static size_t thread_scratch(const mmrt_program *program, const mmrt_op *op) {
    return 2 * taps_of(program, op) * width_of(program, op->out) * sizeof(float);
}

static float *input_at(const struct slice *s, size_t number) {
    return s->inputs + number % s->n_taps * s->n;
}

/* out = the convolution that ends with input `number`. */
static void convolve(const struct slice *s, size_t number, float *out) {
    if (s->bias)
        memcpy(out, s->bias, s->n * sizeof *out);
    else
        memset(out, 0, s->n * sizeof *out);
    for (size_t tap = 0; tap < s->n_taps; tap++) {
        const float *input = input_at(s, number + 1 + tap), *factor = s->taps + tap * s->n;
        for (size_t i = 0; i < s->n; i++)
            out[i] += factor[i] * input[i];
    }
}

static void run_token(const struct worker *w, const struct slice *s, size_t token, size_t number) {
    const struct mmrt_columns *columns = columns_at(w->step, w->op->out);
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const float *given =
        row_at(columns_at(w->step, w->op->in), token) + (size_t)w->op->first + s->first;
    float *input = input_at(s, number), *out = row_at(columns, token) + s->first;
    for (size_t i = 0; i < s->n; i++)
        input[i] = w->op->gated ? given[i] * given[2 * s->all + i] : given[i];
    convolve(s, number, out);
    if (!w->op->gated)
        kernels->activate(MMRT_SILU, out, s->n);
    for (size_t i = 0; i < s->n && w->op->gated; i++)
        out[i] *= given[s->all + i];
    if (columns->q)
        kernels->quantize(columns, token, s->first, s->n);
}

/* The inputs before `number` are what its token leaves. */
static void keep(const struct slice *s, size_t number, float *keeps) {
    const size_t n_kept = s->n_taps - 1;
    for (size_t i = 0; i < n_kept; i++)
        memcpy(keeps + s->first + i * s->all, input_at(s, number - n_kept + i),
               s->n * sizeof(float));
}

static void run_text(const struct worker *w, const struct slice *s, const struct part *text) {
    const size_t n_kept = s->n_taps - 1, bytes = s->n * sizeof(float);
    const float *kept = block_before(w, text) + s->first;
    size_t number = n_kept; /* of the next input, counted from the oldest that is kept */
    for (size_t i = 0; i < n_kept; i++)
        memcpy(input_at(s, i), kept + i * s->all, bytes);
    for (const struct part *part = text; part; part = part->next)
        for (uint32_t t = part->first; t < part->first + part->n; t++) {
            run_token(w, s, t, number++);
            if (w->step->exact || (!part->next && t + 1 == part->first + part->n))
                keep(s, number, block_after_token(w, part, t));
        }
}

/* Threads share out channels, in the groups that are quantised together. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_weight *weight = weight_at(step, w->op->weights[0]);
    const size_t all = weight->rows, n_taps = weight->cols;
    const uint64_t groups = (all + MMRT_GROUP - 1) / MMRT_GROUP;
    const size_t first = mmrt_share_first(groups, w->thread, w->n_threads) * MMRT_GROUP;
    size_t end = mmrt_share_first(groups, w->thread + 1, w->n_threads) * MMRT_GROUP;
    end = end < all ? end : all;
    if (first >= end)
        return;
    float *taps = w->scratch;
    const int32_t bias = w->op->biases[0];
    const struct slice s = {
        .taps = taps,
        .bias = bias < 0 ? NULL : (const float *)weight_at(step, bias)->data + first,
        .inputs = taps + n_taps * (end - first),
        .first = first,
        .n = end - first,
        .all = all,
        .n_taps = n_taps,
    };
    for (size_t i = 0; i < s.n; i++)
        for (size_t tap = 0; tap < n_taps; tap++)
            taps[tap * s.n + i] = ((const float *)weight->data)[(first + i) * n_taps + tap];
    for (const struct part *text = next_text(step, step->parts); text;
         text = text_after(step, text))
        run_text(w, &s, text);
}

const struct op_info mmrt_op_conv = {
    .name = "conv",
    .roles = {VECTOR},
    .check = check,
    .thread_scratch = thread_scratch,
    .run = run,
};
