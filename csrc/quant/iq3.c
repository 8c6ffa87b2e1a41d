/* IQ3_XXS and IQ3_S: indices into grids of four magnitudes, and signs. */
#include "blocks.h"
#include "f16.h"
#include "grids.h"

static void unpack_four(float *out, uint32_t entry, int signs, float scale) {
    for (int j = 0; j < 4; j++) {
        const float value = scale * (float)(entry >> (8 * j) & 0xff);
        out[j] = signs >> j & 1 ? -value : value;
    }
}

void mmrt_unpack_IQ3_XXS(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq3_xxs *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 64; i++) {
            const uint32_t rest = mmrt_load_u32(block->scales + i / 8 * 4);
            const int signs = mmrt_even_signs(rest >> (7 * (i / 2 % 4)) & 0x7f);
            unpack_four(out + 4 * i, mmrt_grid_iq3_xxs[block->qs[i]], signs >> (i % 2 * 4),
                        d * (0.5f + (float)(rest >> 28)) * 0.5f);
        }
    }
}

void mmrt_unpack_IQ3_S(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq3_s *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 64; i++) {
            const int high = block->qh[i / 8] >> (i % 8) & 1;
            const int s = block->scales[i / 16] >> (i / 8 % 2 * 4) & 15;
            unpack_four(out + 4 * i, mmrt_grid_iq3_s[high << 8 | block->qs[i]],
                        block->signs[i / 2] >> (i % 2 * 4), d * (float)(2 * s + 1));
        }
    }
}
