/* IQ1_S and IQ1_M: indices of 11 bits into a grid of -1, 0 and 1, shifted by an eighth. */
#include "blocks.h"
#include "f16.h"
#include "grids.h"

static void unpack_eight(float *out, int index, float scale, float shift) {
    const uint64_t entry = mmrt_grid_iq1[index];
    for (int j = 0; j < 8; j++)
        out[j] = scale * ((float)(int8_t)(entry >> (8 * j)) + shift);
}

void mmrt_unpack_IQ1_S(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq1_s *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 32; i++) {
            const int qh = mmrt_load_u16(block->qh + i / 4 * 2);
            const float scale = d * (float)(2 * (qh >> 12 & 7) + 1);
            const int high = qh >> (3 * (i % 4)) & 7;
            unpack_eight(out + 8 * i, high << 8 | block->qs[i], scale,
                         qh & 0x8000 ? -0.125f : 0.125f);
        }
    }
}

void mmrt_unpack_IQ1_M(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq1_m *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_f16_to_f32(mmrt_iq1_m_d(block->scales));
        for (int i = 0; i < 32; i++) {
            const int s = mmrt_load_u16(block->scales + i / 8 * 2) >> (3 * (i / 2 % 4)) & 7;
            const float scale = d * (float)(2 * s + 1);
            const int qh = block->qh[i / 2] >> (4 * (i % 2)) & 15;
            unpack_eight(out + 8 * i, (qh & 7) << 8 | block->qs[i], scale,
                         qh & 8 ? -0.125f : 0.125f);
        }
    }
}
