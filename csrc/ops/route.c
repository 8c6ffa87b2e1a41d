/* The experts of each token, and their weights, from a router's logits. */
#include "base/status.h"
#include "graph/check.h"
#include "step/step.h"

#include <math.h>

/* Weights are divided by their sum, or by this where that is smaller: the least normal binary16. */
#define LEAST_SUM 6.103515625e-5f

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    const uint64_t n_experts = width_of(program, op->in);
    const uint64_t groups = op->n_groups > 0 ? (uint64_t)op->n_groups : 1;
    if (op->n_used < 1 || (uint64_t)op->n_used > n_experts ||
        width_of(program, op->out) != 2 * (uint64_t)op->n_used || n_experts % groups ||
        (groups > 1 && (op->n_groups_used < 1 || (uint64_t)op->n_groups_used > groups ||
                        (uint64_t)op->n_groups_used * (n_experts / groups) < (uint64_t)op->n_used)))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: cannot choose %d of %llu experts",
                         program->n_ops, op->n_used, (unsigned long long)n_experts);
    if (op->weights[0] >= 0)
        status = mmrt_check_vector(program, op->weights[0], n_experts, err);
    if (!status)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (status)
        return status;
    mmrt_note_write(program, op, op->out, false);
    program->buffers[op->out].choices_of = op->n_used;
    program->buffers[op->out].n_experts = (uint32_t)n_experts;
    return MMRT_OK;
}

static size_t scratch(const mmrt_program *program, const mmrt_op *op) {
    return 2 * width_of(program, op->in) * sizeof(float);
}

static void softmax(float *x, size_t n) {
    float largest = x[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (size_t i = 0; i < n; i++)
        sum += x[i] = expf(x[i] - largest);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

/* What each expert's logit comes to as a weight, but for what depends on the others chosen. */
static void weigh(mmrt_gating gating, const float *logits, float *scores, size_t n) {
    for (size_t i = 0; i < n; i++)
        switch (gating) {
        case MMRT_GATING_SIGMOID: scores[i] = 1 / (1 + expf(-logits[i])); break;
        case MMRT_GATING_SQRT_SOFTPLUS:
            scores[i] = sqrtf(logits[i] > 20 ? logits[i] : log1pf(expf(logits[i])));
            break;
        default: scores[i] = logits[i];
        }
    if (gating == MMRT_GATING_SOFTMAX)
        softmax(scores, n);
}

/* The best of n scores, of equal ones the first; NaN marks those that are taken. */
static size_t take_best(float *scores, size_t n) {
    size_t best = n;
    for (size_t i = 0; i < n; i++)
        if (scores[i] == scores[i] && (best == n || scores[i] > scores[best]))
            best = i;
    scores[best] = NAN;
    return best;
}

/* Only the best groups stay, by the sum of the two best scores of each. */
static void keep_groups(float *scores, size_t n_experts, size_t n_groups, size_t n_kept) {
    const size_t size = n_experts / n_groups;
    for (size_t dropped = n_groups - n_kept; dropped; dropped--) {
        size_t worst = n_groups;
        float least = INFINITY;
        for (size_t g = 0; g < n_groups; g++) {
            float first = -INFINITY, second = -INFINITY;
            for (size_t i = g * size; i < (g + 1) * size; i++) {
                const float score = scores[i];
                if (score > first)
                    second = first, first = score;
                else if (score > second)
                    second = score;
            }
            const float sum = size > 1 ? first + second : first;
            if (first > -INFINITY && sum <= least) /* of equal ones the last */
                least = sum, worst = g;
        }
        for (size_t i = worst * size; worst < n_groups && i < (worst + 1) * size; i++)
            scores[i] = -INFINITY;
    }
}

static void choose(const mmrt_op *op, const float *logits, const float *bias, size_t n_experts,
                   float *scratch, float *out) {
    const size_t n_used = (size_t)op->n_used;
    float *scores = scratch, *selection = scratch + n_experts, *weights = out + n_used;
    float fault = 0; /* NaN if a logit is not finite: then all weights are, and the logits tell */
    weigh((mmrt_gating)op->gating, logits, scores, n_experts);
    for (size_t i = 0; i < n_experts; i++) {
        const float score = scores[i] + (bias ? bias[i] : 0);
        selection[i] = score == score ? score : -INFINITY;
        fault += (logits[i] + score) * 0;
    }
    if (op->n_groups > 1)
        keep_groups(selection, n_experts, (size_t)op->n_groups, (size_t)op->n_groups_used);
    for (size_t i = 0; i < n_used; i++) {
        const size_t best = take_best(selection, n_experts);
        out[i] = (float)best;
        weights[i] = scores[best];
    }
    if (op->gating == MMRT_GATING_CHOSEN)
        softmax(weights, n_used);
    float sum = 0;
    for (size_t i = 0; i < n_used; i++)
        sum += weights[i];
    const float divisor = !op->normalised ? 1 : sum > LEAST_SUM || sum != sum ? sum : LEAST_SUM;
    for (size_t i = 0; i < n_used; i++)
        weights[i] = weights[i] / divisor * op->scale + fault;
}

/* Where the caller has the choices of this operation; NULL: nowhere. */
static int32_t *asked_for(const struct worker *w) {
    int32_t *choices = w->step->choices;
    for (const mmrt_op *op = w->step->program->ops; choices && op < w->op; op++)
        if (op->kind == w->op->kind)
            choices += (size_t)w->step->n * (size_t)op->n_used;
    return choices;
}

static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct mmrt_columns *in = columns_at(step, w->op->in);
    const struct mmrt_columns *out = columns_at(step, w->op->out);
    const float *bias = w->op->weights[0] >= 0 ? weight_at(step, w->op->weights[0])->data : NULL;
    const size_t n_used = (size_t)w->op->n_used;
    int32_t *choices = asked_for(w);
    uint32_t begin, end;
    tokens_of_thread(w, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        choose(w->op, row_at(in, t), bias, in->k, w->scratch, row_at(out, t));
        for (size_t i = 0; choices && i < n_used; i++)
            choices[t * n_used + i] = (int32_t)row_at(out, t)[i];
    }
}

const struct op_info mmrt_op_route = {
    .name = "route",
    .roles = {VECTOR},
    .check = check,
    .thread_scratch = scratch,
    .run = run,
};
