#include "ops/keys.h"

#include "quant/f16.h"
#include "state/page.h"
#include "step/step.h"

#include <string.h>

/* Rotary embedding (Su et al. 2021, arXiv:2104.09864): pairs (a, b) become (a cos - b sin,
 * a sin + b cos). */
void mmrt_rotate(float *head, const float *table, size_t n_pairs, bool interleaved) {
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

void mmrt_store_key(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
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

void mmrt_store_value(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
                      size_t column, size_t element, size_t dim) {
    if (type != MMRT_TYPE_Q8_0) {
        store_f16(page + 2 * slot * dim, 1, row_at(from, column) + element, dim);
        return;
    }
    const size_t first = column * from->stride + element;
    memcpy(page + slot * dim, from->q + first, dim);
    store_scales(page, slot, from, first, dim);
}
