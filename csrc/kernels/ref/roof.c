/* The roof of plain C. */
#include "kernels/ref/ref.h"

uint64_t mmrt_roof_ref(mmrt_roof_kind kind, const uint8_t *data, uint64_t n) {
    volatile uint64_t kept;
    uint64_t bits = 0;
    int32_t sum = 0, factor = 3;
    float total = 0, x = 0.5f;
    for (uint64_t i = 0; i < n; i++) {
        if (kind == MMRT_ROOF_READ)
            bits |= data[i];
        else if (kind == MMRT_ROOF_INT8)
            sum += (int8_t)i * factor;
        else
            total += x * (float)(i & 7);
    }
    kept = bits + (uint64_t)(uint32_t)sum + (uint64_t)total;
    (void)kept;
    return n;
}
