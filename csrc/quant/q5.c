/* Q5_0 and Q5_1: as Q4_0 and Q4_1, with the fifth bits of all elements in one word. */
#include "blocks.h"
#include "f16.h"

static int low_half(const uint8_t qs[16], uint32_t qh, int j) {
    return (qs[j] & 0x0f) | (int)((qh >> j) & 1u) << 4;
}

static int high_half(const uint8_t qs[16], uint32_t qh, int j) {
    return qs[j] >> 4 | (int)((qh >> (j + 16)) & 1u) << 4;
}

void mmrt_unpack_Q5_0(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q5_0 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = mmrt_load_f16(block->d);
        const uint32_t qh = mmrt_load_u32(block->qh);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(low_half(block->qs, qh, j) - 16);
            out[j + 16] = d * (float)(high_half(block->qs, qh, j) - 16);
        }
    }
}

void mmrt_unpack_Q5_1(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q5_1 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = mmrt_load_f16(block->d);
        const float m = mmrt_load_f16(block->m);
        const uint32_t qh = mmrt_load_u32(block->qh);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)low_half(block->qs, qh, j) + m;
            out[j + 16] = d * (float)high_half(block->qs, qh, j) + m;
        }
    }
}
