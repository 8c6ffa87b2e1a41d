/* The tables that IQ and FP4 types look their elements up in. */
#ifndef MMRT_GRIDS_H
#define MMRT_GRIDS_H

#include <stdint.h>

/* Entries of eight elements, the first in the lowest byte: magnitudes 8, 25 and 43 for IQ2 types,
 * -1, 0 and 1 for IQ1 types. */
extern const uint64_t mmrt_grid_iq2_xxs[256];
extern const uint64_t mmrt_grid_iq2_xs[512];
extern const uint64_t mmrt_grid_iq2_s[1024];
extern const uint64_t mmrt_grid_iq1[2048];

/* Entries of four magnitudes: 4 to 62 and 1 to 15. */
extern const uint32_t mmrt_grid_iq3_xxs[256];
extern const uint32_t mmrt_grid_iq3_s[512];

/* What a nibble stands for in IQ4_NL and IQ4_XS, and (doubled) in MXFP4 and NVFP4. */
extern const int8_t mmrt_values_iq4[16];
extern const int8_t mmrt_values_fp4[16];

/* The signs of eight elements, a bit each, of which seven are stored: the number of minus signs is
 * even. */
static inline uint8_t mmrt_even_signs(uint32_t stored) {
    uint32_t parity = stored ^ stored >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (uint8_t)(stored | parity << 7);
}

#endif
