/* Q4_0 and Q4_1: 32 nibbles under one scale. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q4_0(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q4_0 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = mmrt_load_f16(block->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((block->qs[j] & 0x0f) - 8);
            out[j + 16] = d * (float)((block->qs[j] >> 4) - 8);
        }
    }
}

void mmrt_unpack_Q4_1(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q4_1 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = mmrt_load_f16(block->d);
        const float m = mmrt_load_f16(block->m);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(block->qs[j] & 0x0f) + m;
            out[j + 16] = d * (float)(block->qs[j] >> 4) + m;
        }
    }
}
