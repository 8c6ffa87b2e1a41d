/* Operations on heads: rotation and storing of keys and values, attention.
 *
 * Their input buffer holds, for each token, the query heads, then the key heads, then the value
 * heads. Attention reads, and writes, heads that are whole groups of vectors: ROPE copies others to
 * a buffer where each has room for that, with zeros behind its elements. Zeros add nothing to a
 * score, and what comes of values that are zero is left out by JOIN. */
#include "exec/program.h"

#include "kv/kv.h"
#include "quant/f16.h"

#include <string.h>

/* Rotary embedding (Su et al. 2021, arXiv:2104.09864): pairs (a, b) become (a cos - b sin,
 * a sin + b cos). */
static void rotate(float *head, const float *table, size_t n_pairs, bool interleaved) {
    const size_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : n_pairs;
    for (size_t i = 0; i < n_pairs; i++) {
        const float a = head[i * step], b = head[i * step + apart];
        const float cosine = table[2 * i], sine = table[2 * i + 1];
        head[i * step] = a * cosine - b * sine;
        head[i * step + apart] = a * sine + b * cosine;
    }
}

/* `apart` is how far elements of one token lie from one another in the page. */
static void store_f16(uint8_t *to, size_t apart, const float *from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = mmrt_f32_to_f16(from[i]);
        memcpy(to + 2 * i * apart, &half, 2);
    }
}

/* After the bytes of a page: what each group of them is multiplied with. */
static void store_scales(uint8_t *page, size_t slot, const struct mmrt_columns *from, size_t first,
                         size_t dim) {
    for (size_t g = 0; g < dim / MMRT_GROUP; g++)
        memcpy(page + MMRT_PAGE_KEYS * (dim + g * sizeof(float)) + slot * sizeof(float),
               from->d + first / MMRT_GROUP + g, sizeof(float));
}

/* A key of `dim` elements from `from` on, to its place in a page. */
static void store_key(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
                      size_t column, size_t element, size_t dim) {
    if (type != MMRT_TYPE_Q8_0) {
        store_f16(page + 2 * slot, MMRT_PAGE_KEYS, row_at(from, column) + element, dim);
        return;
    }
    const size_t first = column * from->stride + element;
    for (size_t i = 0; i < dim; i += 4)
        memcpy(page + i * MMRT_PAGE_KEYS + 4 * slot, from->q + first + i, 4);
    store_scales(page, slot, from, first, dim);
}

static void store_value(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
                        size_t column, size_t element, size_t dim) {
    if (type != MMRT_TYPE_Q8_0) {
        store_f16(page + 2 * slot * dim, 1, row_at(from, column) + element, dim);
        return;
    }
    const size_t first = column * from->stride + element;
    memcpy(page + slot * dim, from->q + first, dim);
    store_scales(page, slot, from, first, dim);
}

void mmrt_op_rope(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_kv_shape shape = step->program->kv_shape;
    const mmrt_op *op = w->op;
    const mmrt_program *program = step->program;
    const struct mmrt_columns *in = columns_at(step, op->in), *heads = columns_at(step, op->out);
    const struct rope *rope = op->rope >= 0 ? &program->ropes[op->rope] : NULL;
    const size_t dim = shape.head_dim, room = mmrt_kv_head_room(shape), n_kv = shape.n_heads;
    const size_t n_q = (size_t)op->n_heads, n_heads = n_q + 2 * n_kv;
    const uint64_t n = step->n * n_heads;
    const uint64_t end = n * (uint64_t)(w->thread + 1) / (uint64_t)w->n_threads;
    const struct part *part = step->parts;
    for (uint64_t i = n * (uint64_t)w->thread / (uint64_t)w->n_threads; i < end; i++) {
        const size_t token = i / n_heads, head = i % n_heads;
        const bool is_query = head < n_q, is_value = head >= n_q + n_kv;
        float *x = row_at(heads, token) + head * room;
        if (heads != in)
            memcpy(x, row_at(in, token) + head * dim, dim * sizeof *x);
        const int32_t norm = op->weights[is_query ? 0 : 1];
        if (!is_value && norm >= 0)
            program->kernels->rms_norm(x, weight_at(step, norm)->data, op->eps, x, dim);
        if (!is_value && rope)
            rotate(x, rope->table + token * rope->n_pairs * 2, rope->n_pairs, op->interleaved);
        const uint32_t type = is_value ? shape.v_type : shape.k_type;
        if (type == MMRT_TYPE_Q8_0) /* queries as keys */
            program->kernels->quantize(heads, token, head * room, room);
        if (is_query)
            continue;
        part = part_from(part, token);
        const uint64_t position = position_of(part, token);
        const size_t slot = position % MMRT_PAGE_KEYS;
        uint8_t *page = mmrt_kv_pages(part->kv)[position / MMRT_PAGE_KEYS];
        const uint32_t layer = (uint32_t)op->layer;
        const size_t among = is_value ? head - n_q - n_kv : head - n_q;
        if (is_value)
            store_value(type, page + mmrt_kv_values_at(part->kv, layer, (uint32_t)among), slot,
                        heads, token, head * room, room);
        else
            store_key(type, page + mmrt_kv_keys_at(part->kv, layer, (uint32_t)among), slot, heads,
                      token, head * room, room);
    }
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
    const uint64_t keys = (all + MMRT_ATTEND_SECTIONS - 1) / MMRT_ATTEND_SECTIONS;
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
    const size_t n_kv = step->program->kv_shape.n_heads, n = step->n - first_token(w);
    struct tasks t = {.group = (size_t)w->op->n_heads / n_kv, .sections.n = 1};
    struct tile tile;
    t.tokens = t.group < MMRT_ATTEND_ROWS ? MMRT_ATTEND_ROWS / t.group : 1;
    t.tokens = t.tokens < n ? t.tokens : n;
    t.tiles = tiles_of(step, first_token(w), t.tokens, 0, &tile);
    if (step->n == 1)
        t.sections = sections_of(step->parts->position, w->op->window);
    t.heads = heads_of_task(t.group, t.tiles * t.sections.n * n_kv, (size_t)w->n_threads);
    t.shares = (t.group + t.heads - 1) / t.heads;
    t.n = t.tiles * t.sections.n * n_kv * t.shares;
    return t;
}

/* The output of n_tokens tokens from `token` on is there, for n_heads heads from `head` on. */
static void quantize_heads(const struct worker *w, size_t token, size_t n_tokens, size_t head,
                           size_t n_heads) {
    const struct mmrt_columns *out = columns_at(w->step, w->op->out);
    const size_t dim = mmrt_kv_head_room(w->step->program->kv_shape);
    if (out->q && dim % MMRT_GROUP == 0) /* else a JOIN follows */
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
    const size_t dim = mmrt_kv_head_room(program->kv_shape);
    const size_t head = kv_head * t->group + in_group;
    const uint64_t position = position_of(tile->part, tile->token);
    return (struct mmrt_attention){
        .queries = columns_at(w->step, op->in),
        .column = tile->token,
        .element = head * dim,
        .out = row_at(out, tile->token) + head * dim,
        .out_stride = out->k,
        .n_tokens = tile->n,
        .n_heads = t->group - in_group < t->heads ? t->group - in_group : t->heads,
        .head_dim = dim,
        .k_type = program->kv_shape.k_type,
        .v_type = program->kv_shape.v_type,
        .position = position,
        .window = op->window,
        .begin = mmrt_attend_begin(position, op->window),
        .end = position + tile->n,
        .pages = mmrt_kv_pages(tile->part->kv),
        .k_offset = mmrt_kv_keys_at(tile->part->kv, (uint32_t)op->layer, (uint32_t)kv_head),
        .v_offset = mmrt_kv_values_at(tile->part->kv, (uint32_t)op->layer, (uint32_t)kv_head),
        .scale = op->scale,
        .softcap = op->softcap,
        .scratch = w->scratch,
    };
}

/* The keys of section number `i` alone. */
static void see_section(struct mmrt_attention *a, const struct sections_of_keys *s, size_t i) {
    a->begin = s->begin + i * s->keys;
    a->end = a->begin + s->keys < a->end ? a->begin + s->keys : a->end;
}

/* One section of the keys for some of the heads from kv_head * group on; the last task of these
 * heads adds all sections up. */
static void attend_section(const struct worker *w, const struct tasks *t, struct mmrt_attention *a,
                           size_t section, size_t kv_head, size_t in_group) {
    const mmrt_program *program = w->step->program;
    const size_t dim = a->head_dim, head = kv_head * t->group;
    float *sums = program->sections.sums + head * MMRT_ATTEND_SECTIONS * dim;
    float *weights = program->sections.weights + head * MMRT_ATTEND_SECTIONS * 2;
    a->out = sums + (section * t->group + in_group) * dim;
    a->weights = weights + (section * t->group + in_group) * 2;
    see_section(a, &t->sections, section);
    program->kernels->attend(a);
    atomic_uint *done = &w->step->sections_done[kv_head];
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
    float *sums;    /* [MMRT_ATTEND_SECTIONS][MMRT_ATTEND_ROWS][head_dim] */
    float *merged;  /* [MMRT_ATTEND_ROWS][head_dim] */
    float *weights; /* [MMRT_ATTEND_SECTIONS][MMRT_ATTEND_ROWS][2] */
};

size_t mmrt_attend_op_scratch(const mmrt_program *program) {
    const size_t dim = mmrt_kv_head_room(program->kv_shape), rows = MMRT_ATTEND_ROWS;
    const size_t exact = rows * ((MMRT_ATTEND_SECTIONS + 1) * dim + MMRT_ATTEND_SECTIONS * 2);
    return mmrt_attend_scratch(dim) + (program->exact ? exact * sizeof(float) : 0);
}

static struct exact_scratch exact_scratch_of(const struct worker *w, size_t dim) {
    struct exact_scratch s;
    s.sums = (float *)(void *)((uint8_t *)w->scratch + mmrt_attend_scratch(dim));
    s.merged = s.sums + MMRT_ATTEND_SECTIONS * MMRT_ATTEND_ROWS * dim;
    s.weights = s.merged + MMRT_ATTEND_ROWS * dim;
    return s;
}

/* Tokens whose keys have the same sections, but for how many the last of these has. */
static void attend_alike(const struct worker *w, const struct mmrt_attention *a,
                         const struct sections_of_keys *sections) {
    const struct mmrt_kernels *kernels = w->step->program->kernels;
    const size_t dim = a->head_dim, of_token = a->n_heads * dim, rows = a->n_tokens * a->n_heads;
    const struct exact_scratch s = exact_scratch_of(w, dim);
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
    const uint64_t position = position_of(tile->part, tile->token), window = w->op->window;
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

void mmrt_op_attend(struct worker *w) {
    const mmrt_program *program = w->step->program;
    const size_t n_kv = program->kv_shape.n_heads;
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
        if (program->exact)
            attend_exactly(w, &t, &tile, kv_head, in_group);
        else
            program->kernels->attend(&a);
        quantize_heads(w, tile.token, a.n_tokens, kv_head * t.group + in_group, a.n_heads);
    }
}
