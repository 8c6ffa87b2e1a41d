/* Q2_K: planes of two bits, with a 4-bit scale and minimum for every 16 elements. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q2_K(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q2_k *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        const float dmin = mmrt_load_f16(block->dmin);
        for (int i = 0; i < 16; i++) {
            const float scale = d * (float)(block->scales[i] & 0x0f);
            const float min = dmin * (float)(block->scales[i] >> 4);
            const uint8_t *qs = block->qs + i / 8 * 32 + i % 2 * 16;
            const int plane = i / 2 % 4;
            for (int l = 0; l < 16; l++)
                out[16 * i + l] = scale * (float)((qs[l] >> (2 * plane)) & 0x03) - min;
        }
    }
}
