/* F32, F16, BF16: no blocks, and exact. */
#include "f16.h"
#include "quant.h"

void mmrt_unpack_F32(const void *blocks, float *out, size_t n_elements) {
    if (n_elements > 0)
        memcpy(out, blocks, n_elements * sizeof *out);
}

void mmrt_unpack_F16(const void *blocks, float *out, size_t n_elements) {
    const uint8_t *bytes = blocks;
    for (size_t i = 0; i < n_elements; i++)
        out[i] = mmrt_load_f16(bytes + 2 * i);
}

void mmrt_unpack_BF16(const void *blocks, float *out, size_t n_elements) {
    const uint8_t *bytes = blocks;
    for (size_t i = 0; i < n_elements; i++)
        out[i] = mmrt_bf16_to_f32(mmrt_load_u16(bytes + 2 * i));
}
