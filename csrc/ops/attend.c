/* Attention over the cache. Its weight, if any, is a sink for each query head. */
#include "base/status.h"
#include "graph/check.h"
#include "ops/heads.h"
#include "step/step.h"

#include <string.h>

/* Of keys that have values in them there is no other head in `in` than the last. */
static mmrt_status check_latent(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const uint64_t n = (uint64_t)op->n_heads;
    if (op->n_heads < 1 || width_of(program, op->in) != (n + 1) * mmrt_head_room(layer) ||
        width_of(program, op->out) != n * mmrt_result_room(layer))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    return MMRT_OK;
}

static mmrt_status check(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const bool latent = layer && layer->spec.v_in_keys;
    mmrt_status status = latent ? MMRT_OK : mmrt_check_layer(program, op, err);
    if (!status)
        status = mmrt_check_buffer(program, op->in, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (status)
        return status;
    status = latent ? check_latent(program, op, err)
                    : mmrt_check_heads(program, op, mmrt_head_room(layer),
                                       (uint64_t)op->n_heads + 2 * mmrt_own_heads(layer),
                                       (uint64_t)op->n_heads, err);
    if (!status && op->weights[0] >= 0)
        status = mmrt_check_vector(program, op->weights[0], (uint64_t)op->n_heads, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    if (!status)
        status = mmrt_check_read(program, op, op->in, false, err);
    if (!status && program->buffers[op->in].heads_of != op->layer + 1)
        status = mmrt_fail(err, MMRT_ARGUMENT,
                           "operation %d attends to layer %d, whose keys and values no ROPE has "
                           "stored from buffer %d",
                           program->n_ops, op->layer, op->in);
    if (status)
        return status;
    mmrt_note_write(program, op, op->out, !latent && !mmrt_heads_are_apart(&layer->spec));
    return MMRT_OK;
}

/* What one token attends to is cut into sections of its keys, for threads to share. Of each section
 * and query head there are a sum and two weights, until they are added up. */
enum { SECTIONS = 16 };

struct sections {
    float *sums;    /* [key-value head][SECTIONS][its query heads][head's room] */
    float *weights; /* likewise [2] */
};

static struct sections sections_in(void *memory, size_t n_heads, size_t dim) {
    return (struct sections){memory, (float *)memory + n_heads * SECTIONS * dim};
}

static size_t shared_scratch(const mmrt_program *program, const mmrt_op *op) {
    const size_t dim = mmrt_result_room(mmrt_layer_of(program, op));
    return (size_t)op->n_heads * SECTIONS * (dim + 2) * sizeof(float);
}

/* Of each key-value head: sections that are done. */
static size_t counters(const mmrt_program *program, const mmrt_op *op) {
    return mmrt_layer_of(program, op)->spec.n_heads;
}

/* How many of the query heads that share a key-value head one task takes: all of them, unless that
 * leaves threads without work. */
static size_t heads_of_task(size_t group, size_t tasks, size_t n_threads) {
    size_t heads = group < MMRT_ATTEND_ROWS ? group : MMRT_ATTEND_ROWS;
    while (heads > 1) {
        const size_t n = tasks * ((group + heads - 1) / heads);
        if (n >= 4 * n_threads || n % n_threads == 0)
            break;
        heads = (heads + 1) / 2;
    }
    return heads;
}

/* Tokens of one part that attend together. */
struct tile {
    const struct part *part;
    size_t token, n;
};

/* The number of tiles of the step's tokens from `first` on, each of `tokens` at most; *found is the
 * one of number `wanted`. */
static size_t tiles_of(const struct step *step, size_t first, size_t tokens, size_t wanted,
                       struct tile *found) {
    size_t n_tiles = 0;
    for (const struct part *part = part_from(step->parts, first);; part++) {
        const size_t end = (size_t)part->first + part->n;
        const size_t start = part->first < first ? first : part->first;
        const size_t n = (end - start + tokens - 1) / tokens, number = wanted - n_tiles;
        if (wanted >= n_tiles && number < n) {
            const size_t token = start + number * tokens, left = end - token;
            *found = (struct tile){part, token, left < tokens ? left : tokens};
        }
        n_tiles += n;
        if (end == step->n)
            return n_tiles;
    }
}

/* The keys that a token attends to alone, in sections: a matter of where it is, not of threads, so
 * that results are not either. */
struct sections_of_keys {
    uint64_t begin; /* the first key of the first */
    uint64_t keys;  /* of each */
    size_t n;
};

static struct sections_of_keys sections_of(uint64_t position, uint64_t window) {
    enum { LEAST = 256, TILE = MMRT_ATTEND_KEYS };
    struct sections_of_keys s = {.begin = mmrt_attend_begin(position, window)};
    const uint64_t all = position + 1 - s.begin;
    const uint64_t keys = (all + SECTIONS - 1) / SECTIONS;
    s.keys = keys < LEAST ? LEAST : (keys + TILE - 1) / TILE * TILE;
    s.n = (size_t)((all + s.keys - 1) / s.keys);
    return s;
}

/* How attention is cut into tasks: tiles of tokens, or in a step of one token sections of its keys;
 * for each key-value head; for each share of the query heads that read it. */
struct tasks {
    size_t group;  /* query heads to a key-value head */
    size_t tokens; /* of a tile */
    size_t tiles;
    size_t heads; /* of a share */
    size_t shares;
    struct sections_of_keys sections; /* n: 1 if the step has several tokens */
    uint64_t n;
};

static struct tasks tasks_of(const struct worker *w) {
    const struct step *step = w->step;
    const mmrt_layer_state *spec = &mmrt_layer_of(step->program, w->op)->spec;
    const size_t n_kv = spec->n_heads, n = step->n - first_token(w);
    struct tasks t = {.group = (size_t)w->op->n_heads / n_kv, .sections.n = 1};
    struct tile tile;
    t.tokens = t.group < MMRT_ATTEND_ROWS ? MMRT_ATTEND_ROWS / t.group : 1;
    t.tokens = t.tokens < n ? t.tokens : n;
    t.tiles = tiles_of(step, first_token(w), t.tokens, 0, &tile);
    if (step->n == 1)
        t.sections = sections_of(step->parts->position, spec->window);
    t.heads = heads_of_task(t.group, t.tiles * t.sections.n * n_kv, (size_t)w->n_threads);
    t.shares = (t.group + t.heads - 1) / t.heads;
    t.n = t.tiles * t.sections.n * n_kv * t.shares;
    return t;
}

/* The output of n_tokens tokens from `token` on is there, for n_heads heads from `head` on. */
static void quantize_heads(const struct worker *w, size_t token, size_t n_tokens, size_t head,
                           size_t n_heads) {
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    const struct mmrt_state_layer *layer = mmrt_layer_of(w->step->program, w->op);
    const size_t dim = mmrt_result_room(layer);
    if (out->q && !mmrt_heads_are_apart(&layer->spec))
        for (size_t t = 0; t < n_tokens; t++)
            w->step->program->kernels->quantize(out, token + t, head * dim, n_heads * dim);
}

/* Attention of a tile's tokens for the heads of one share, from kv_head * group + in_group on. */
static struct mmrt_attention attention_of(const struct worker *w, const struct tasks *t,
                                          const struct tile *tile, size_t kv_head,
                                          size_t in_group) {
    const mmrt_program *program = w->step->program;
    const mmrt_op *op = w->op;
    const struct mmrt_columns *out = columns_at(w->step, op->out);
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const size_t dim = mmrt_head_room(layer), result = mmrt_result_room(layer);
    const size_t head = kv_head * t->group + in_group;
    const float *sinks = op->weights[0] >= 0 ? weight_at(w->step, op->weights[0])->data : NULL;
    const uint64_t position = position_of(tile->part, tile->token);
    return (struct mmrt_attention){
        .queries = columns_at(w->step, op->in),
        .column = tile->token,
        .element = head * dim,
        .out = row_at(out, tile->token) + head * result,
        .out_stride = out->k,
        .n_tokens = tile->n,
        .n_heads = t->group - in_group < t->heads ? t->group - in_group : t->heads,
        .head_dim = dim,
        .value_dim = result,
        .values_in_keys = layer->spec.v_in_keys,
        .k_type = layer->spec.k_type,
        .v_type = layer->spec.v_type,
        .position = position,
        .window = layer->spec.window,
        .begin = mmrt_attend_begin(position, layer->spec.window),
        .end = position + tile->n,
        .pages = mmrt_state_pages(tile->part->state, layer->table),
        .k_offset = mmrt_state_keys_at(layer, (uint32_t)kv_head),
        .v_offset = mmrt_state_values_at(layer, (uint32_t)kv_head),
        .scale = op->scale,
        .softcap = op->softcap,
        .sinks = sinks ? sinks + head : NULL,
        .scratch = w->scratch,
    };
}

/* The keys of section number `i` alone; sinks belong to the first. */
static void see_section(struct mmrt_attention *a, const struct sections_of_keys *s, size_t i) {
    a->sinks = i ? NULL : a->sinks;
    a->begin = s->begin + i * s->keys;
    a->end = a->begin + s->keys < a->end ? a->begin + s->keys : a->end;
}

/* One section of the keys for some of the heads from kv_head * group on; the last task of these
 * heads adds all sections up. */
static void attend_section(const struct worker *w, const struct tasks *t, struct mmrt_attention *a,
                           size_t section, size_t kv_head, size_t in_group) {
    const mmrt_program *program = w->step->program;
    const size_t dim = a->value_dim, head = kv_head * t->group;
    const struct sections all = sections_in(program->shared, (size_t)w->op->n_heads, dim);
    float *sums = all.sums + head * SECTIONS * dim;
    float *weights = all.weights + head * SECTIONS * 2;
    a->out = sums + (section * t->group + in_group) * dim;
    a->weights = weights + (section * t->group + in_group) * 2;
    see_section(a, &t->sections, section);
    program->kernels->attend(a);
    atomic_uint *done = &w->step->counters[kv_head];
    if (atomic_fetch_add(done, 1) + 1 < t->sections.n * t->shares)
        return;
    atomic_store(done, 0);
    program->kernels->attend_merge(sums, weights, t->sections.n, t->group, dim,
                                   row_at(columns_at(w->step, w->op->out), 0) + head * dim);
    quantize_heads(w, 0, 1, head, t->group);
}

/* ---- exactly as in steps of one token ---- */

/* Sections of a tile's rows, and then what they come to, behind the kernel's own scratch. */
struct exact_scratch {
    float *sums;    /* [SECTIONS][MMRT_ATTEND_ROWS][value_dim] */
    float *merged;  /* [MMRT_ATTEND_ROWS][value_dim] */
    float *weights; /* [SECTIONS][MMRT_ATTEND_ROWS][2] */
};

static size_t thread_scratch(const mmrt_program *program, const mmrt_op *op) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const size_t dim = mmrt_result_room(layer), rows = MMRT_ATTEND_ROWS;
    const size_t exact = rows * ((SECTIONS + 1) * dim + SECTIONS * 2);
    return mmrt_attend_scratch(mmrt_head_room(layer), dim) + exact * sizeof(float);
}

static struct exact_scratch exact_scratch_of(const struct worker *w,
                                             const struct mmrt_attention *a) {
    const size_t dim = a->value_dim;
    struct exact_scratch s;
    s.sums = (float *)(void *)((uint8_t *)w->scratch + mmrt_attend_scratch(a->head_dim, dim));
    s.merged = s.sums + SECTIONS * MMRT_ATTEND_ROWS * dim;
    s.weights = s.merged + MMRT_ATTEND_ROWS * dim;
    return s;
}

/* Tokens whose keys have the same sections, but for how many the last of these has. */
static void attend_alike(const struct worker *w, const struct mmrt_attention *a,
                         const struct sections_of_keys *sections) {
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const size_t dim = a->value_dim, of_token = a->n_heads * dim, rows = a->n_tokens * a->n_heads;
    const struct exact_scratch s = exact_scratch_of(w, a);
    for (size_t i = 0; i < sections->n; i++) {
        struct mmrt_attention part = *a;
        part.out = s.sums + i * rows * dim;
        part.out_stride = of_token;
        part.weights = s.weights + i * rows * 2;
        see_section(&part, sections, i);
        kernels->attend(&part);
    }
    kernels->attend_merge(s.sums, s.weights, sections->n, rows, dim, s.merged);
    for (size_t t = 0; t < a->n_tokens; t++)
        memcpy(a->out + t * a->out_stride, s.merged + t * of_token, of_token * sizeof(float));
}

static void attend_exactly(const struct worker *w, const struct tasks *t, const struct tile *tile,
                           size_t kv_head, size_t in_group) {
    const uint64_t position = position_of(tile->part, tile->token);
    const uint64_t window = mmrt_layer_of(w->step->program, w->op)->spec.window;
    for (size_t first = 0, end; first < tile->n; first = end) {
        struct sections_of_keys sections = sections_of(position + first, window);
        const struct sections_of_keys of_first = sections;
        for (end = first + 1; end < tile->n; end++) {
            const struct sections_of_keys next = sections_of(position + end, window);
            if (next.begin != of_first.begin || next.keys != of_first.keys ||
                (next.n == 1) != (of_first.n == 1))
                break;
            sections = next;
        }
        const struct tile alike = {tile->part, tile->token + first, end - first};
        const struct mmrt_attention a = attention_of(w, t, &alike, kv_head, in_group);
        if (sections.n == 1)
            w->step->program->kernels->attend(&a);
        else
            attend_alike(w, &a, &sections);
    }
}

/* ---- the operation ---- */

static void run(struct worker *w) {
    const mmrt_program *program = w->step->program;
    const size_t n_kv = mmrt_layer_of(program, w->op)->spec.n_heads;
    const struct tasks t = tasks_of(w);
    uint64_t task;
    mmrt_share_begin(w->runs, w->thread, w->n_threads, t.n);
    while (mmrt_share_next(w->runs, w->thread, w->n_threads, &task)) {
        const size_t in_group = task % t.shares * t.heads, kv_head = task / t.shares % n_kv;
        const size_t number = task / t.shares / n_kv;
        struct tile tile = {0};
        tiles_of(w->step, first_token(w), t.tokens, number / t.sections.n, &tile);
        struct mmrt_attention a = attention_of(w, &t, &tile, kv_head, in_group);
        if (t.sections.n > 1) {
            attend_section(w, &t, &a, number, kv_head, in_group);
            continue;
        }
        if (w->step->exact)
            attend_exactly(w, &t, &tile, kv_head, in_group);
        else
            program->kernels->attend(&a);
        quantize_heads(w, tile.token, a.n_tokens, kv_head * t.group + in_group, a.n_heads);
    }
}

const struct op_info mmrt_op_attend = {
    .name = "attend",
    .roles = {VECTOR},
    .check = check,
    .thread_scratch = thread_scratch,
    .shared_scratch = shared_scratch,
    .counters = counters,
    .run = run,
};
