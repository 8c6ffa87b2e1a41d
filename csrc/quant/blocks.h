/* How the blocks of each quantised type lie in memory. All members are bytes, so a struct has no
 * padding and may point anywhere into a mapped file. d, m, dmin are binary16; q is an integer. */
#ifndef MMRT_BLOCKS_H
#define MMRT_BLOCKS_H

#include <assert.h>
#include <stdint.h>

#include "quant.h"

/* 32 elements. In qs the low nibble of byte j is element j, the high one element j + 16. */

struct mmrt_block_q4_0 { /* d * (q - 8) */
    uint8_t d[2];
    uint8_t qs[16];
};

struct mmrt_block_q4_1 { /* d * q + m */
    uint8_t d[2];
    uint8_t m[2];
    uint8_t qs[16];
};

struct mmrt_block_q5_0 { /* d * (q - 16) */
    uint8_t d[2];
    uint8_t qh[4]; /* as one u32: bit e is the fifth bit of element e */
    uint8_t qs[16];
};

struct mmrt_block_q5_1 { /* d * q + m */
    uint8_t d[2];
    uint8_t m[2];
    uint8_t qh[4]; /* as in Q5_0 */
    uint8_t qs[16];
};

struct mmrt_block_q8_0 { /* d * q */
    uint8_t d[2];
    int8_t qs[32];
};

struct mmrt_block_iq4_nl { /* d * mmrt_values_iq4[q] */
    uint8_t d[2];
    uint8_t qs[16];
};

struct mmrt_block_mxfp4 { /* 2^(e - 128) * mmrt_values_fp4[q] */
    uint8_t e;
    uint8_t qs[16];
};

/* 64 elements */

struct mmrt_block_nvfp4 { /* d / 2 * mmrt_values_fp4[q], four sub-blocks of 16 */
    uint8_t d[4];         /* E4M3 without a sign; 0x7f is zero */
    uint8_t qs[32];       /* byte 8i + j: low nibble is element 16i + j, high one 16i + j + 8 */
};

/* 256 elements, in sub-blocks of 16 or 32 that share an integer scale s (and minimum m). */

struct mmrt_block_q2_k { /* d * s * q - dmin * m, sub-blocks of 16 */
    uint8_t scales[16];  /* low nibble s, high nibble m */
    uint8_t qs[64];      /* element 128h + 32j + l: the pair of bits j of qs[32h + l] */
    uint8_t d[2];
    uint8_t dmin[2];
};

struct mmrt_block_q3_k { /* d * (s - 32) * q, sub-blocks of 16; q is -4 to 3 */
    uint8_t hmask[32];   /* bit 4h + j of hmask[l] clear: subtract 4 from element 128h + 32j + l */
    uint8_t qs[64];      /* as in Q2_K */
    uint8_t scales[12];  /* 16 of six bits: see mmrt_q3_k_scale */
    uint8_t d[2];
};

struct mmrt_block_q4_k { /* d * s * q - dmin * m, sub-blocks of 32 */
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[12]; /* 8 of s and 8 of m, six bits each: see mmrt_q4_k_scale and _min */
    uint8_t qs[128];    /* element 64c + l: low nibble of qs[32c + l]; 64c + 32 + l: its high one */
};

struct mmrt_block_q5_k { /* d * s * q - dmin * m, sub-blocks of 32 */
    uint8_t d[2];
    uint8_t dmin[2];
    uint8_t scales[12]; /* as in Q4_K */
    uint8_t qh[32];     /* bit b of qh[l] is the fifth bit of element 32b + l */
    uint8_t qs[128];    /* as in Q4_K */
};

struct mmrt_block_q6_k { /* d * s * (q - 32), sub-blocks of 16 */
    uint8_t ql[128];     /* half h, 64 bytes: low nibbles are elements 0..63 of it, high 64..127 */
    uint8_t qh[64];      /* element 128h + 32j + l: its upper two bits are pair j of qh[32h + l] */
    int8_t scales[16];
    uint8_t d[2];
};

struct mmrt_block_iq4_xs { /* d * (s - 32) * mmrt_values_iq4[q], sub-blocks of 32 */
    uint8_t d[2];
    uint8_t scales_h[2]; /* as one u16: the upper two bits of s of sub-block b are its pair b */
    uint8_t
        scales_l[4]; /* the lower four: low nibbles are even sub-blocks, high nibbles odd ones */
    uint8_t qs[128]; /* 16 a sub-block, as in IQ4_NL */
};

struct mmrt_block_tq1_0 { /* d * (q - 1); q are five digits of base 3 in a byte, see tq.c */
    uint8_t qs[48];       /* elements 32n + m, then 160 + 16n + m: digit n of qs[m], qs[32 + m] */
    uint8_t qh[4];        /* element 240 + 4n + m: digit n of qh[m] */
    uint8_t d[2];
};

struct mmrt_block_tq2_0 { /* d * (q - 1) */
    uint8_t qs[64];       /* as in Q2_K */
    uint8_t d[2];
};

/* 256 elements in 32 entries of eight, or 64 of four, from a grid of grids.h. Of eight signs one
 * bit each, set for minus, or seven bits: see mmrt_even_signs. */

struct mmrt_block_iq2_xxs { /* d / 4 * (s + 1/2) * grid */
    uint8_t d[2];
    uint8_t qs[64]; /* for every 32 elements four indices, and a u32: four signs of seven bits, s */
};

struct mmrt_block_iq2_xs { /* d / 4 * (s + 1/2) * grid */
    uint8_t d[2];
    uint8_t qs[64];    /* a u16 an entry: index of nine bits, signs of seven */
    uint8_t scales[8]; /* a nibble for every 16 elements */
};

struct mmrt_block_iq2_s { /* d / 4 * (s + 1/2) * grid */
    uint8_t d[2];
    uint8_t qs[32]; /* the lower eight bits of an entry's index */
    uint8_t signs[32];
    uint8_t qh[8];     /* the upper two: a pair an entry */
    uint8_t scales[8]; /* a nibble for every 16 elements */
};

struct mmrt_block_iq3_xxs { /* d / 2 * (s + 1/2) * grid */
    uint8_t d[2];
    uint8_t qs[64];     /* indices */
    uint8_t scales[32]; /* for every 32 elements a u32: four signs of seven bits, s */
};

struct mmrt_block_iq3_s { /* d * (2s + 1) * grid */
    uint8_t d[2];
    uint8_t qs[64]; /* the lower eight bits of an entry's index */
    uint8_t qh[8];  /* the ninth: a bit an entry */
    uint8_t signs[32];
    uint8_t scales[4]; /* a nibble for every 32 elements */
};

struct mmrt_block_iq1_s { /* d * (2s + 1) * (grid +- 1/8) */
    uint8_t d[2];
    uint8_t qs[32]; /* the lower eight bits of an entry's index */
    uint8_t qh[16]; /* for every 32 elements a u16: four times the upper three, s, bit 15 for - */
};

struct mmrt_block_iq1_m { /* d * (2s + 1) * (grid +- 1/8) */
    uint8_t qs[32];       /* the lower eight bits of an entry's index */
    uint8_t qh[16];       /* a nibble an entry: the upper three, bit 3 for - */
    uint8_t scales[8];    /* four of u16: s for every 16 elements, three bits each, then 4 of d */
};

static_assert(sizeof(struct mmrt_block_q4_0) == MMRT_BYTES_Q4_0, "Q4_0");
static_assert(sizeof(struct mmrt_block_q4_1) == MMRT_BYTES_Q4_1, "Q4_1");
static_assert(sizeof(struct mmrt_block_q5_0) == MMRT_BYTES_Q5_0, "Q5_0");
static_assert(sizeof(struct mmrt_block_q5_1) == MMRT_BYTES_Q5_1, "Q5_1");
static_assert(sizeof(struct mmrt_block_q8_0) == MMRT_BYTES_Q8_0, "Q8_0");
static_assert(sizeof(struct mmrt_block_q2_k) == MMRT_BYTES_Q2_K, "Q2_K");
static_assert(sizeof(struct mmrt_block_q3_k) == MMRT_BYTES_Q3_K, "Q3_K");
static_assert(sizeof(struct mmrt_block_q4_k) == MMRT_BYTES_Q4_K, "Q4_K");
static_assert(sizeof(struct mmrt_block_q5_k) == MMRT_BYTES_Q5_K, "Q5_K");
static_assert(sizeof(struct mmrt_block_q6_k) == MMRT_BYTES_Q6_K, "Q6_K");
static_assert(sizeof(struct mmrt_block_iq4_nl) == MMRT_BYTES_IQ4_NL, "IQ4_NL");
static_assert(sizeof(struct mmrt_block_mxfp4) == MMRT_BYTES_MXFP4, "MXFP4");
static_assert(sizeof(struct mmrt_block_nvfp4) == MMRT_BYTES_NVFP4, "NVFP4");
static_assert(sizeof(struct mmrt_block_iq4_xs) == MMRT_BYTES_IQ4_XS, "IQ4_XS");
static_assert(sizeof(struct mmrt_block_tq1_0) == MMRT_BYTES_TQ1_0, "TQ1_0");
static_assert(sizeof(struct mmrt_block_tq2_0) == MMRT_BYTES_TQ2_0, "TQ2_0");
static_assert(sizeof(struct mmrt_block_iq2_xxs) == MMRT_BYTES_IQ2_XXS, "IQ2_XXS");
static_assert(sizeof(struct mmrt_block_iq2_xs) == MMRT_BYTES_IQ2_XS, "IQ2_XS");
static_assert(sizeof(struct mmrt_block_iq2_s) == MMRT_BYTES_IQ2_S, "IQ2_S");
static_assert(sizeof(struct mmrt_block_iq3_xxs) == MMRT_BYTES_IQ3_XXS, "IQ3_XXS");
static_assert(sizeof(struct mmrt_block_iq3_s) == MMRT_BYTES_IQ3_S, "IQ3_S");
static_assert(sizeof(struct mmrt_block_iq1_s) == MMRT_BYTES_IQ1_S, "IQ1_S");
static_assert(sizeof(struct mmrt_block_iq1_m) == MMRT_BYTES_IQ1_M, "IQ1_M");

/* Sub-block i of Q3_K: four bits from a nibble of bytes 0..7, the upper two from bytes 8..11.
 * Still biased by 32. */
static inline int mmrt_q3_k_scale(const uint8_t scales[12], int i) {
    const int low = (scales[i % 8] >> (i / 8 * 4)) & 0x0f;
    const int high = (scales[8 + i % 4] >> (i / 4 * 2)) & 0x03;
    return high << 4 | low;
}

/* Sub-block i of Q4_K and Q5_K: the first four are the low six bits of a byte; the last four take
 * a nibble of bytes 8..11 and the two bits that the first four left over. */
static inline int mmrt_q4_k_scale(const uint8_t scales[12], int i) {
    if (i < 4)
        return scales[i] & 0x3f;
    return (scales[i - 4] >> 6) << 4 | (scales[i + 4] & 0x0f);
}

static inline int mmrt_q4_k_min(const uint8_t scales[12], int i) {
    if (i < 4)
        return scales[i + 4] & 0x3f;
    return (scales[i] >> 6) << 4 | scales[i + 4] >> 4;
}

/* The binary16 d of IQ1_M, from the upper nibbles of the scales. */
static inline uint16_t mmrt_iq1_m_d(const uint8_t scales[8]) {
    return (uint16_t)(scales[1] >> 4 | (scales[3] & 0xf0) | (scales[5] >> 4) << 8 |
                      (scales[7] >> 4) << 12);
}

#endif
