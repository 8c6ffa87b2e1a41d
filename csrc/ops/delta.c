/* The gated delta rule (Yang et al. 2025, arXiv:2412.06464). Each head of values keeps a matrix
 * [dim][dim] in the layer's block, after `first` floats of others: rows are for elements of keys.
 *
 * `in` holds for each token heads of queries, as many of keys, and those of values; several heads
 * of values share one of queries and keys. `stream` holds a gate for each element of `out`, and for
 * each head of values how much of its matrix decays, and how much is written: decays and writes,
 * or, if grouped, for each head of keys the writes and the decays of its heads. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/blocks.h"

#include <math.h>

/* Weights: a head's bias and factor of its decay, and a norm of each head's output. */
enum { DECAY_BIAS, DECAY_FACTOR, NORM };

/* Heads, and elements of each. */
struct heads {
    size_t keys, values, dim;
};

static struct heads heads_of(const mmrt_program *program, const mmrt_op *op) {
    struct heads h = {.values = (size_t)op->n_heads};
    h.dim = width_of(program, op->out) / h.values;
    h.keys = (width_of(program, op->in) - h.values * h.dim) / (2 * h.dim);
    return h;
}

static mmrt_status check_widths(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t in = width_of(program, op->in), out = width_of(program, op->out);
    const uint64_t n = op->n_heads > 0 ? (uint64_t)op->n_heads : 1, dim = out / n;
    const uint64_t keys = in > out && dim ? (in - out) / (2 * dim) : 0;
    if (op->n_heads < 1 || op->first < 0 || op->outputs_only || out != n * dim || !keys ||
        in != out + 2 * keys * dim || n % keys || width_of(program, op->stream) != out + 2 * n)
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
    status = mmrt_check_vector(program, op->weights[DECAY_BIAS], h.values, err);
    if (!status)
        status = mmrt_check_vector(program, op->weights[DECAY_FACTOR], h.values, err);
    if (!status)
        status = mmrt_check_vector(program, op->weights[NORM], h.dim, err);
    if (!status)
        status = mmrt_check_block(program, op, (uint64_t)op->first + h.values * h.dim * h.dim, err);
    if (!status)
        mmrt_note_write(program, op, op->out, true);
    return status;
}

/* Of a thread. */
struct scratch {
    float *key_norm, *query_norm;    /* factors of elements, all alike */
    float *keys, *queries, *results; /* [MMRT_CHUNK][dim], of one head */
};

static size_t thread_scratch(const mmrt_program *program, const mmrt_op *op) {
    return (2 + 3 * MMRT_CHUNK) * heads_of(program, op).dim * sizeof(float);
}

/* Keys come to the length 1, queries to 1 / sqrt(dim): an RMS norm makes sqrt(dim) of each. */
static struct scratch scratch_of(const struct worker *w, size_t dim) {
    float *memory = w->scratch, *chunks = memory + 2 * dim;
    const size_t of_chunk = MMRT_CHUNK * dim;
    const struct scratch s = {memory, memory + dim, chunks, chunks + of_chunk,
                              chunks + 2 * of_chunk};
    for (size_t i = 0; i < dim; i++) {
        s.key_norm[i] = 1 / sqrtf((float)dim);
        s.query_norm[i] = 1 / (float)dim;
    }
    return s;
}

static const float *floats_at(const struct worker *w, int weight) {
    return weight_at(w->step, w->op->weights[weight])->data;
}

static const float *gates_of(const struct worker *w, size_t token) {
    return row_at(columns_at(w->step, w->op->stream), token);
}

/* Sets by what the head's matrix is multiplied at token i, and how much is written into it. */
static void set_gates(const struct worker *w, const struct heads *h, size_t head,
                      const float *gates, struct mmrt_delta *d, size_t i) {
    const size_t share = h->values / h->keys, group = head / share * 2 * share + head % share;
    const float decay = w->op->grouped ? gates[group + share] : gates[head];
    const float write = w->op->grouped ? gates[group] : gates[h->values + head];
    d->decays[i] =
        expf(floats_at(w, DECAY_FACTOR)[head] * softplus(decay + floats_at(w, DECAY_BIAS)[head]));
    d->betas[i] = 1 / (1 + expf(-write));
}

/* Makes a token of the step the i-th of those that `d` takes. */
static void set_token(const struct worker *w, const struct heads *h, const struct scratch *s,
                      size_t head, size_t token, struct mmrt_delta *d, size_t i) {
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const size_t of_keys = w->op->grouped ? head / (h->values / h->keys) : head % h->keys;
    const float *queries = row_at(columns_at(w->step, w->op->in), token);
    const float *keys = queries + h->keys * h->dim, *values = keys + h->keys * h->dim;
    const float eps = w->op->eps * w->op->eps / (float)h->dim; /* of squares of lengths */
    float *key = s->keys + i * h->dim, *query = s->queries + i * h->dim;
    kernels->rms_norm(queries + of_keys * h->dim, s->query_norm, eps, query, h->dim);
    kernels->rms_norm(keys + of_keys * h->dim, s->key_norm, eps, key, h->dim);
    set_gates(w, h, head, gates_of(w, token) + h->values * h->dim, d, i);
    d->keys[i] = key;
    d->queries[i] = query;
    d->values[i] = values + head * h->dim;
    d->out[i] = s->results + i * h->dim;
}

static void give(const struct worker *w, const struct heads *h, size_t head, size_t token,
                 float *result) {
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const struct mmrt_columns *columns = columns_at(w->step, w->op->out);
    const size_t first = head * h->dim;
    kernels->rms_norm(result, floats_at(w, NORM), w->op->eps, result, h->dim);
    kernels->glu(MMRT_SILU, gates_of(w, token) + first, result, row_at(columns, token) + first,
                 h->dim);
    if (columns->q)
        kernels->quantize(columns, token, first, h->dim);
}

static void run_head(const struct worker *w, const struct heads *h, const struct scratch *s,
                     size_t head, const struct walk *walk) {
    const size_t at = (size_t)w->op->first + head * h->dim * h->dim;
    struct mmrt_delta d = {.before = walk->before + at,
                           .after = walk->after + at,
                           .n_keys = h->dim,
                           .n_values = h->dim,
                           .n = walk->n};
    for (size_t i = 0; i < d.n; i++)
        set_token(w, h, s, head, walk->tokens[i], &d, i);
    w->step->program->kernels->delta(&d);
    for (size_t i = 0; i < d.n; i++)
        give(w, h, head, walk->tokens[i], d.out[i]);
}

/* Threads share out heads. */
static void run(struct worker *w) {
    const struct step *step = w->step;
    const struct heads h = heads_of(step->program, w->op);
    const struct scratch s = scratch_of(w, h.dim);
    const uint64_t first = mmrt_share_first(h.values, w->thread, w->n_threads);
    const uint64_t end = mmrt_share_first(h.values, w->thread + 1, w->n_threads);
    for (const struct part *text = next_text(step, step->parts); text;
         text = text_after(step, text))
        for (struct walk walk = walk_over(w, text); mmrt_walk_on(w, &walk);)
            for (uint64_t head = first; head < end; head++)
                run_head(w, &h, &s, head, &walk);
}

const struct op_info mmrt_op_delta = {
    .name = "delta",
    .roles = {VECTOR, VECTOR, VECTOR},
    .check = check,
    .thread_scratch = thread_scratch,
    .run = run,
};
