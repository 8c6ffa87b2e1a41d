/* The encoder of TQ2_0. */
#include "blocks.h"
#include "f16.h"

#include <math.h>
#include <stdlib.h>

static int falling(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The best scale for -1, 0 and 1: whichever values are not 0, they are the largest ones, and their
 * mean size is their best scale; k of them lower the squared error by sum^2 / k. */
static float best_scale(const float *x) {
    float sizes[256], sum = 0, best_sum = 0, best_k = 1;
    for (int i = 0; i < 256; i++)
        sizes[i] = fabsf(x[i]);
    qsort(sizes, 256, sizeof *sizes, falling);
    for (int i = 0; i < 256; i++) {
        const float k = (float)(i + 1);
        sum += sizes[i];
        if (sum * sum * best_k > best_sum * best_sum * k) {
            best_sum = sum;
            best_k = k;
        }
    }
    return best_sum / best_k;
}

void mmrt_pack_TQ2_0(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_tq2_0 *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        const float half = 0.5f * mmrt_store_f16(block->d, best_scale(values));
        memset(block->qs, 0, sizeof block->qs);
        for (int i = 0; i < 256; i++) {
            const int q = (values[i] > half) - (values[i] < -half) + 1;
            block->qs[i / 128 * 32 + i % 32] |= (uint8_t)(q << (i / 32 % 4 * 2));
        }
    }
}
