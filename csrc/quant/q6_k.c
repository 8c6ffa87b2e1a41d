/* Q6_K: a nibble and a pair of bits an element, with an 8-bit scale for every 16 elements. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q6_K(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q6_k *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 16; i++) {
            const float scale = d * (float)block->scales[i];
            const uint8_t *ql = block->ql + i / 8 * 64 + i % 4 * 16;
            const uint8_t *qh = block->qh + i / 8 * 32 + i % 2 * 16;
            const int shift = i / 4 % 2 * 4;
            const int plane = i / 2 % 4;
            for (int l = 0; l < 16; l++) {
                const int low = (ql[l] >> shift) & 0x0f;
                const int high = (qh[l] >> (2 * plane)) & 0x03;
                out[16 * i + l] = scale * (float)((high << 4 | low) - 32);
            }
        }
    }
}
