/* Q5_K: Q4_K with a fifth bit for each element, eight elements to a byte. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q5_K(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q5_k *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        const float dmin = mmrt_load_f16(block->dmin);
        for (int i = 0; i < 8; i++) {
            const float scale = d * (float)mmrt_q4_k_scale(block->scales, i);
            const float min = dmin * (float)mmrt_q4_k_min(block->scales, i);
            const uint8_t *qs = block->qs + i / 2 * 32;
            const int shift = i % 2 * 4;
            for (int l = 0; l < 32; l++) {
                const int low = (qs[l] >> shift) & 0x0f;
                const int high = (block->qh[l] >> i) & 1;
                out[32 * i + l] = scale * (float)(high << 4 | low) - min;
            }
        }
    }
}
