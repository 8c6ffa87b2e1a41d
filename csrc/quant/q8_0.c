/* Q8_0: 32 signed bytes under one scale. */
#include "blocks.h"
#include "f16.h"

void mmrt_unpack_Q8_0(const void *blocks, float *out, size_t n_elements) {
    const struct mmrt_block_q8_0 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, out += 32) {
        const float d = mmrt_load_f16(block->d);
        for (int j = 0; j < 32; j++)
            out[j] = d * (float)block->qs[j];
    }
}
