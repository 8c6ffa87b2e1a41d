/* Operations on heads: rotation and storing of keys and values, attention.
 *
 * Their input buffer holds, for each token, the query heads, then the key heads, then the value
 * heads. */
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

void mmrt_op_rope(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_op *op = w->op;
    const mmrt_program *program = step->program;
    const struct mmrt_columns *in = columns_at(step, op->in);
    const struct rope *rope = op->rope >= 0 ? &program->ropes[op->rope] : NULL;
    const size_t dim = program->kv_shape.head_dim, n_kv = program->kv_shape.n_heads;
    const size_t n_q = (size_t)op->n_heads, n_heads = n_q + 2 * n_kv;
    const uint64_t n = step->n * n_heads;
    const uint64_t end = n * (uint64_t)(w->thread + 1) / (uint64_t)w->n_threads;
    const struct part *part = step->parts;
    for (uint64_t i = n * (uint64_t)w->thread / (uint64_t)w->n_threads; i < end; i++) {
        const size_t token = i / n_heads, head = i % n_heads;
        const bool is_query = head < n_q, is_value = head >= n_q + n_kv;
        float *x = row_at(in, token) + head * dim;
        const int32_t norm = op->weights[is_query ? 0 : 1];
        if (!is_value && norm >= 0)
            program->kernels->rms_norm(x, weight_at(step, norm)->data, op->eps, x, dim);
        if (!is_value && rope)
            rotate(x, rope->table + token * rope->n_pairs * 2, rope->n_pairs, op->interleaved);
        if (is_query)
            continue;
        part = part_from(part, token);
        const uint64_t position = position_of(part, token);
        const size_t slot = position % MMRT_PAGE_KEYS;
        uint8_t *page = mmrt_kv_pages(part->kv)[position / MMRT_PAGE_KEYS];
        const uint32_t layer = (uint32_t)op->layer;
        if (is_value)
            store_f16(page + mmrt_kv_values_at(part->kv, layer, (uint32_t)(head - n_q - n_kv)) +
                          2 * slot * dim,
                      1, x, dim);
        else
            store_f16(page + mmrt_kv_keys_at(part->kv, layer, (uint32_t)(head - n_q)) + 2 * slot,
                      MMRT_PAGE_KEYS, x, dim);
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

void mmrt_op_attend(struct worker *w) {
    const struct step *step = w->step;
    const mmrt_op *op = w->op;
    const mmrt_program *program = step->program;
    const struct mmrt_columns *in = columns_at(step, op->in), *out = columns_at(step, op->out);
    const size_t dim = program->kv_shape.head_dim, n_kv = program->kv_shape.n_heads;
    const size_t group = (size_t)op->n_heads / n_kv, first = first_token(w), n = step->n - first;
    size_t heads = group < MMRT_ATTEND_ROWS ? group : MMRT_ATTEND_ROWS;
    size_t tokens = MMRT_ATTEND_ROWS / heads; /* of a tile */
    if (tokens > n)
        tokens = n;
    struct tile tile = {0};
    const size_t tiles = tiles_of(step, first, tokens, 0, &tile);
    heads = heads_of_task(group, tiles * n_kv, (size_t)w->n_threads);
    const size_t parts = (group + heads - 1) / heads;
    uint64_t task;
    mmrt_share_begin(w->runs, w->thread, w->n_threads, tiles * n_kv * parts);
    while (mmrt_share_next(w->runs, w->thread, w->n_threads, &task)) {
        tiles_of(step, first, tokens, task / (n_kv * parts), &tile);
        const size_t kv_head = task / parts % n_kv, token = tile.token;
        const size_t in_group = task % parts * heads;
        const size_t head = kv_head * group + in_group;
        struct mmrt_attention a = {
            .q = row_at(in, token) + head * dim,
            .out = row_at(out, token) + head * dim,
            .q_stride = in->k,
            .out_stride = out->k,
            .n_tokens = tile.n,
            .n_heads = group - in_group < heads ? group - in_group : heads,
            .head_dim = dim,
            .position = position_of(tile.part, token),
            .window = op->window,
            .pages = mmrt_kv_pages(tile.part->kv),
            .k_offset = mmrt_kv_keys_at(tile.part->kv, (uint32_t)op->layer, (uint32_t)kv_head),
            .v_offset = mmrt_kv_values_at(tile.part->kv, (uint32_t)op->layer, (uint32_t)kv_head),
            .scale = op->scale,
            .softcap = op->softcap,
            .scratch = w->scratch,
        };
        program->kernels->attend(&a);
        if (out->q && dim % MMRT_GROUP == 0) /* else a QUANTIZE operation follows */
            for (size_t t = 0; t < a.n_tokens; t++)
                program->kernels->quantize(out, token + t, head * dim, a.n_heads * dim);
    }
}
