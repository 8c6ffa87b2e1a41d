/* Q3_K: the planes of Q2_K, a third bit from a mask, and a 6-bit scale for every 16 elements. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q3_K(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q3_k *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 16; i++) {
            const float scale = d * (float)(mmrt_q3_k_scale(block->scales, i) - 32);
            const uint8_t *qs = block->qs + i / 8 * 32 + i % 2 * 16;
            const uint8_t *hmask = block->hmask + i % 2 * 16;
            const int plane = i / 2 % 4;
            for (int l = 0; l < 16; l++) {
                const int low = (qs[l] >> (2 * plane)) & 0x03;
                const int high = (hmask[l] >> (i / 2)) & 1;
                out[16 * i + l] = scale * (float)((high << 2 | low) - 4);
            }
        }
    }
}
