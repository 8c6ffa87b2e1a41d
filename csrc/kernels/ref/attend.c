#include "kernels/ref/ref.h"

#include "quant/f16.h"

#include <math.h>
#include <string.h>

static float half_at(const uint8_t *page, size_t index) {
    uint16_t bits;
    memcpy(&bits, page + 2 * index, 2);
    return mmrt_f16_to_f32(bits);
}

/* What element i of key or value `key`, of `dim` elements, of a Q8_0 page is multiplied with. */
static float scale_at(size_t dim, const uint8_t *page, size_t key, size_t i) {
    float scale;
    memcpy(&scale,
           page + MMRT_PAGE_KEYS * dim + sizeof scale * (i / MMRT_GROUP * MMRT_PAGE_KEYS + key),
           sizeof scale);
    return scale;
}

/* Element i of key `key`, but for what quantised ones are multiplied with. */
static float key_at(const struct mmrt_attention *a, const uint8_t *page, size_t key, size_t i) {
    return a->k_type == MMRT_TYPE_Q8_0
               ? (float)(int8_t)page[(i / 4 * MMRT_PAGE_KEYS + key) * 4 + i % 4]
               : half_at(page, i * MMRT_PAGE_KEYS + key);
}

static double score(const struct mmrt_attention *a, size_t column, size_t element, uint64_t at) {
    const uint8_t *page = a->pages[at / MMRT_PAGE_KEYS] + a->k_offset;
    const size_t key = at % MMRT_PAGE_KEYS;
    const struct mmrt_columns *c = a->queries;
    double sum = 0;
    for (size_t i = 0; i < a->head_dim; i++) {
        if (a->k_type == MMRT_TYPE_Q8_0) {
            const size_t of_q = column * c->stride + element + i;
            sum += (double)c->d[of_q / MMRT_GROUP] * scale_at(a->head_dim, page, key, i) *
                   ((float)c->q[of_q] * key_at(a, page, key, i));
        } else {
            sum += (double)c->x[column * c->k + element + i] * key_at(a, page, key, i);
        }
    }
    sum *= a->scale;
    return a->softcap > 0 ? a->softcap * tanh(sum / a->softcap) : sum;
}

static float value_at(const struct mmrt_attention *a, uint64_t at, size_t i) {
    const uint8_t *page = a->pages[at / MMRT_PAGE_KEYS];
    const size_t key = at % MMRT_PAGE_KEYS, index = key * a->value_dim + i;
    if (a->values_in_keys) {
        page += a->k_offset;
        const float k = key_at(a, page, key, i);
        return a->k_type == MMRT_TYPE_Q8_0 ? scale_at(a->head_dim, page, key, i) * k : k;
    }
    page += a->v_offset;
    return a->v_type == MMRT_TYPE_Q8_0
               ? scale_at(a->value_dim, page, key, i) * (float)(int8_t)page[index]
               : half_at(page, index);
}

/* One row, with a sink unless that is NULL, whose weights are at `weights` if that is not NULL. */
static void attend_one(const struct mmrt_attention *a, size_t column, size_t element,
                       uint64_t position, const float *sink, float *out, float *weights) {
    uint64_t first = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
    first = first > a->begin ? first : a->begin;
    const uint64_t end = position + 1 < a->end ? position + 1 : a->end;
    double largest = sink ? *sink : -1e30;
    for (uint64_t key = first; key < end; key++)
        largest = fmax(largest, score(a, column, element, key));
    double total = sink ? exp(*sink - largest) : 0;
    memset(out, 0, a->value_dim * sizeof *out);
    for (uint64_t key = first; key < end; key++) {
        double p = exp(score(a, column, element, key) - largest);
        total += p;
        for (size_t i = 0; i < a->value_dim; i++)
            out[i] += (float)p * value_at(a, key, i);
    }
    if (weights) {
        weights[0] = (float)largest;
        weights[1] = (float)total;
        return;
    }
    for (size_t i = 0; i < a->value_dim; i++)
        out[i] = (float)(out[i] / total);
}

void mmrt_attend_ref(const struct mmrt_attention *a) {
    for (size_t t = 0; t < a->n_tokens; t++)
        for (size_t h = 0; h < a->n_heads; h++)
            attend_one(a, a->column + t, a->element + h * a->head_dim, a->position + t,
                       a->sinks ? a->sinks + h : NULL,
                       a->out + t * a->out_stride + h * a->value_dim,
                       a->weights ? a->weights + 2 * (t * a->n_heads + h) : NULL);
}

void mmrt_attend_merge_ref(const float *sums, const float *weights, size_t n_parts, size_t n_rows,
                           size_t dim, float *out) {
    for (size_t r = 0; r < n_rows; r++) {
        float largest = -1e30f; /* gcc 12 for aarch64 crashes on a maximum of doubles here */
        double total = 0;
        for (size_t p = 0; p < n_parts; p++)
            largest = fmaxf(largest, weights[2 * (p * n_rows + r)]);
        memset(out + r * dim, 0, dim * sizeof *out);
        for (size_t p = 0; p < n_parts; p++) {
            const float *part = weights + 2 * (p * n_rows + r);
            const double factor = exp((double)part[0] - largest);
            total += factor * part[1];
            for (size_t i = 0; i < dim; i++)
                out[r * dim + i] += (float)factor * sums[(p * n_rows + r) * dim + i];
        }
        for (size_t i = 0; i < dim; i++)
            out[r * dim + i] = (float)(out[r * dim + i] / total);
    }
}
