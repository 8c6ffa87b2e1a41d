/* Q1_0, Q2_0 and PQ2_0: one or two bits an element, in order from the lowest, under one scale. */
#include "f16.h"
#include "quant.h"

/* d where the bit is set, else -d. */
void mmrt_unpack_Q1_0(const void *blocks, float *out, size_t n_elements) {
    const uint8_t *block = blocks;
    for (size_t n = n_elements / 128; n > 0; n--, block += MMRT_BYTES_Q1_0, out += 128) {
        const float d = mmrt_load_f16(block);
        for (int i = 0; i < 128; i++)
            out[i] = block[2 + i / 8] >> i % 8 & 1 ? d : -d;
    }
}

/* d * (q - 1), q from 0 to 3. */
static void unpack_pairs(const uint8_t *block, float *out, size_t n_elements, size_t of_block) {
    for (size_t n = n_elements / of_block; n > 0; n--, block += 2 + of_block / 4, out += of_block) {
        const float d = mmrt_load_f16(block);
        for (size_t i = 0; i < of_block; i++)
            out[i] = d * (float)((block[2 + i / 4] >> (i % 4 * 2) & 3) - 1);
    }
}

void mmrt_unpack_Q2_0(const void *blocks, float *out, size_t n_elements) {
    unpack_pairs(blocks, out, n_elements, MMRT_ELEMENTS_Q2_0);
}

void mmrt_unpack_PQ2_0(const void *blocks, float *out, size_t n_elements) {
    unpack_pairs(blocks, out, n_elements, MMRT_ELEMENTS_PQ2_0);
}
