/* TQ1_0 and TQ2_0: -1, 0 and 1 under one scale. */
#include "blocks.h"
#include "f16.h"

/* A byte holds five digits of base 3 as a fraction of 256, rounded up: times 3^n modulo 256 brings
 * digit n to the front, times 3 out at the top. */
static float digit_of(uint8_t byte, int n) {
    static const uint8_t powers[] = {1, 3, 9, 27, 81};
    return (float)(((uint8_t)(byte * powers[n]) * 3 >> 8) - 1);
}

void mmrt_unpack_TQ1_0(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_tq1_0 *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 160; i++)
            out[i] = d * digit_of(block->qs[i % 32], i / 32);
        for (int i = 0; i < 80; i++)
            out[160 + i] = d * digit_of(block->qs[32 + i % 16], i / 16);
        for (int i = 0; i < 16; i++)
            out[240 + i] = d * digit_of(block->qh[i % 4], i / 4);
    }
}

void mmrt_unpack_TQ2_0(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_tq2_0 *block = blocks;
    for (size_t n = n_elements / 256; n > 0; n--, block++, out += 256) {
        const float d = mmrt_load_f16(block->d);
        for (int i = 0; i < 256; i++)
            out[i] = d * (float)((block->qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) - 1);
    }
}
