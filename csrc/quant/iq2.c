/* IQ2_XXS, IQ2_XS and IQ2_S: indices into grids of eight magnitudes, and signs. */
#include "blocks.h"
#include "f16.h"
#include "grids.h"

static void unpack_eight(float *out, uint64_t entry, int signs, float scale) {
    for (int j = 0; j < 8; j++) {
        const float value = scale * (float)(entry >> (8 * j) & 0xff);
        out[j] = signs >> j & 1 ? -value : value;
    }
}

/* A quarter of d times s + 1/2. */
static float scale_of(float d, uint32_t s) {
    return d * (0.5f + (float)s) * 0.25f;
}

void mmrt_unpack_IQ2_XXS(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq2_xxs *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 32; i++) {
            const uint8_t *group = block->qs + i / 4 * 8;
            const uint32_t rest = mmrt_load_u32(group + 4);
            unpack_eight(out + 8 * i, mmrt_grid_iq2_xxs[group[i % 4]],
                         mmrt_even_signs(rest >> (7 * (i % 4)) & 0x7f), scale_of(d, rest >> 28));
        }
    }
}

void mmrt_unpack_IQ2_XS(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq2_xs *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 32; i++) {
            const uint32_t q = mmrt_load_u16(block->qs + 2 * i);
            const uint32_t s = block->scales[i / 4] >> (i / 2 % 2 * 4) & 15;
            unpack_eight(out + 8 * i, mmrt_grid_iq2_xs[q & 0x1ff], mmrt_even_signs(q >> 9),
                         scale_of(d, s));
        }
    }
}

void mmrt_unpack_IQ2_S(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq2_s *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 32; i++) {
            const int high = block->qh[i / 4] >> (2 * (i % 4)) & 3;
            const uint32_t s = block->scales[i / 4] >> (i / 2 % 2 * 4) & 15;
            unpack_eight(out + 8 * i, mmrt_grid_iq2_s[high << 8 | block->qs[i]], block->signs[i],
                         scale_of(d, s));
        }
    }
}
