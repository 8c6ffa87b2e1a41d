/* MXFP4 and NVFP4: numbers of four bits (E2M1, from a table that doubles them) under scales of
 * eight (halved to make up for it). */
#include "blocks.h"
#include "f16.h"
#include "grids.h"

/* Half of 2^(e - 127), e = 0 and 1 being subnormal. 255, a NaN elsewhere, is 2^127. */
static float half_of_e8m0(uint8_t e) {
    return mmrt_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* Half of an E4M3 number, whose sign bit is not looked at. 0x7f stands for zero. */
static float half_of_ue4m3(uint8_t e4m3) {
    const int exponent = e4m3 >> 3 & 15, mantissa = e4m3 & 7;
    if (e4m3 == 0x7f)
        return 0;
    if (exponent == 0)
        return (float)mantissa * 0x1p-10f;
    return mmrt_f32_from_bits((uint32_t)(exponent - 8 + 127) << 23 | (uint32_t)mantissa << 20);
}

void mmrt_unpack_MXFP4(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_mxfp4 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = half_of_e8m0(block->e);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)mmrt_values_fp4[block->qs[j] & 0x0f];
            out[j + 16] = d * (float)mmrt_values_fp4[block->qs[j] >> 4];
        }
    }
}

void mmrt_unpack_NVFP4(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_nvfp4 *block = blocks;
    for (size_t n = n_elements / 64; n > 0; n--, block++, out += 64)
        for (int i = 0; i < 4; i++) {
            const float d = half_of_ue4m3(block->d[i]);
            for (int j = 0; j < 8; j++) {
                const uint8_t q = block->qs[8 * i + j];
                out[16 * i + j] = d * (float)mmrt_values_fp4[q & 0x0f];
                out[16 * i + j + 8] = d * (float)mmrt_values_fp4[q >> 4];
            }
        }
}
