#include "kernels/ref/ref.h"

#include "quant/f16.h"

#include <math.h>
#include <string.h>

static float half_at(const uint8_t *page, size_t offset, size_t index) {
    uint16_t bits;
    memcpy(&bits, page + offset + 2 * index, 2);
    return mmrt_f16_to_f32(bits);
}

static double score(const struct mmrt_attention *a, const float *q, uint64_t key) {
    const uint8_t *page = a->pages[key / MMRT_PAGE_KEYS];
    double sum = 0;
    for (size_t i = 0; i < a->head_dim; i++)
        sum += (double)q[i] * half_at(page, a->k_offset, i * MMRT_PAGE_KEYS + key % MMRT_PAGE_KEYS);
    sum *= a->scale;
    return a->softcap > 0 ? a->softcap * tanh(sum / a->softcap) : sum;
}

static void attend_one(const struct mmrt_attention *a, const float *q, uint64_t position,
                       float *out) {
    uint64_t first = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
    double largest = -INFINITY, total = 0;
    for (uint64_t key = first; key <= position; key++)
        largest = fmax(largest, score(a, q, key));
    memset(out, 0, a->head_dim * sizeof *out);
    for (uint64_t key = first; key <= position; key++) {
        double p = exp(score(a, q, key) - largest);
        total += p;
        for (size_t i = 0; i < a->head_dim; i++)
            out[i] += (float)p * half_at(a->pages[key / MMRT_PAGE_KEYS], a->v_offset,
                                         key % MMRT_PAGE_KEYS * a->head_dim + i);
    }
    for (size_t i = 0; i < a->head_dim; i++)
        out[i] = (float)(out[i] / total);
}

void mmrt_attend_ref(const struct mmrt_attention *a) {
    for (size_t t = 0; t < a->n_tokens; t++)
        for (size_t h = 0; h < a->n_heads; h++)
            attend_one(a, a->q + t * a->q_stride + h * a->head_dim, a->position + t,
                       a->out + t * a->out_stride + h * a->head_dim);
}
