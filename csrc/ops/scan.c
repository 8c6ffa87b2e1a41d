/* Selective state spaces (Dao and Gu 2024, arXiv:2405.21060). Each head keeps a matrix
 * [states][dim] in the layer's block, after `first` floats of others.
 *
 * `in` holds for each token the heads, and for each of n_groups groups of neighbouring heads what
 * is written by, b [states]; then likewise what is read by, c. `stream` holds what `in` was made
 * of, between a gate for each element of `out` and a step for each head. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/blocks.h"

#include <math.h>

/* Weights: of each head the bias of its step, the factor of its decay, and how much of what it
 * reads it passes on as it is. */
enum { STEP_BIAS, DECAY_FACTOR, SKIP };

struct heads {
    size_t n, dim, groups, states;
};

static struct heads heads_of(const mmrt_program *program, const mmrt_op *op) {
    struct heads h = {.n = (size_t)op->n_heads, .groups = (size_t)op->n_groups};
    h.dim = width_of(program, op->out) / h.n;
    h.states = (width_of(program, op->in) - h.n * h.dim) / (2 * h.groups);
    return h;
}

static mmrt_status check_widths(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t in = width_of(program, op->in), out = width_of(program, op->out);
    const uint64_t n = op->n_heads > 0 ? (uint64_t)op->n_heads : 1, dim = out / n;
    const uint64_t groups = op->n_groups > 0 ? (uint64_t)op->n_groups : 1;
    if (op->n_heads < 1 || op->n_groups < 1 || op->first < 0 || op->outputs_only || !dim ||
        out != n * dim || n % groups || in <= out || (in - out) % (2 * groups) ||
        width_of(program, op->stream) != in + out + n)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    if (dim % MMRT_GROUP)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "layer %d: heads of %llu elements: only multiples of %d run", op->layer,
                         (unsigned long long)dim, MMRT_GROUP);
    return MMRT_OK;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_heads_with_states(program, op, err);
    if (!status)
        status = check_widths(program, op, err);
    if (status)
        return status;
    const struct heads h = heads_of(program, op);
    for (int i = STEP_BIAS; !status && i <= SKIP; i++)
        status = mmrt_check_vector(program, op->weights[i], h.n, err);
    if (!status)
        status = mmrt_check_block(program, op, (uint64_t)op->first + h.n * h.states * h.dim, err);
    if (!status)
        mmrt_note_write(program, op, op->out, false);
    return status;
}

static float of_head(const struct worker *w, int weight, size_t head) {
    return ((const float *)weight_at(w->step, w->op->weights[weight])->data)[head];
}

static const float *gates_of(const struct worker *w, size_t token) {
    return row_at(columns_at(w->step, w->op->stream), token);
}

/* Makes a token of the step the i-th of those that `s` takes. */
static void set_token(const struct worker *w, const struct heads *h, size_t head, size_t token,
                      struct mmrt_scan *s, size_t i) {
    const struct mmrt_columns *in = columns_at(w->step, w->op->in);
    const float *steps = gates_of(w, token) + h->n * h->dim + in->k, *row = row_at(in, token);
    s->x[i] = row + head * h->dim;
    s->b[i] = row + h->n * h->dim + head / (h->n / h->groups) * h->states;
    s->c[i] = s->b[i] + h->groups * h->states;
    s->steps[i] = softplus(steps[head] + of_head(w, STEP_BIAS, head));
    s->decays[i] = expf(s->steps[i] * of_head(w, DECAY_FACTOR, head));
    s->out[i] = row_at(columns_at(w->step, w->op->out), token) + head * h->dim;
}

static void run_head(const struct worker *w, const struct heads *h, size_t head,
                     const struct walk *walk) {
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const size_t at = (size_t)w->op->first + head * h->states * h->dim;
    struct mmrt_scan s = {.before = walk->before + at,
                          .after = walk->after + at,
                          .n_states = h->states,
                          .n_values = h->dim,
                          .n = walk->n,
                          .skip = of_head(w, SKIP, head)};
    for (size_t i = 0; i < s.n; i++)
        set_token(w, h, head, walk->tokens[i], &s, i);
    kernels->scan(&s);
    for (size_t i = 0; i < s.n; i++)
        kernels->glu(MMRT_SILU, gates_of(w, walk->tokens[i]) + head * h->dim, s.out[i], s.out[i],
                     h->dim);
}

/* Threads share out heads. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct heads h = heads_of(step->program, w->op);
    const uint64_t first = mmrt_share_first(h.n, w->thread, w->n_threads);
    const uint64_t end = mmrt_share_first(h.n, w->thread + 1, w->n_threads);
    for (const struct part *text = next_text(step, step->parts); text;
         text = text_after(step, text))
        for (struct walk walk = walk_over(w, text); mmrt_walk_on(w, &walk);)
            for (uint64_t head = first; head < end; head++)
                run_head(w, &h, head, &walk);
}

const struct op_info mmrt_op_scan = {
    .name = "scan",
    .roles = {VECTOR, VECTOR, VECTOR},
    .check = check,
    .run = run,
};
