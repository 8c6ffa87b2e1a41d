/* IQ4_NL and IQ4_XS: nibbles that stand for 16 values, denser about zero. */
#include "blocks.h"
#include "f16.h"
#include "grids.h"

static void unpack_32(float *out, const uint8_t qs[16], float scale) {
    for (int j = 0; j < 16; j++) {
        out[j] = scale * (float)mmrt_values_iq4[qs[j] & 0x0f];
        out[j + 16] = scale * (float)mmrt_values_iq4[qs[j] >> 4];
    }
}

void mmrt_unpack_IQ4_NL(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq4_nl *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32)
        unpack_32(out, block->qs, mmrt_load_f16(block->d));
}

void mmrt_unpack_IQ4_XS(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_iq4_xs *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        const int scales_h = mmrt_load_u16(block->scales_h);
        for (int i = 0; i < 8; i++) {
            const int low = block->scales_l[i / 2] >> (i % 2 * 4) & 0x0f;
            const int high = scales_h >> (2 * i) & 0x03;
            unpack_32(out + 32 * i, block->qs + 16 * i, d * (float)((high << 4 | low) - 32));
        }
    }
}
