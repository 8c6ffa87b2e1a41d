/* Scales of scales: a block of 256 whose sub-blocks have small whole numbers for scale and minimum,
 * in units that the block holds in binary16. */
#ifndef MMRT_FIT_SUPER_H
#define MMRT_FIT_SUPER_H

#include <stdint.h>

/* What a type can hold: x = d * s * q - dmin * m, q from q_lo to q_hi, with an s from s_lo to s_hi
 * and an m from 0 to m_hi for every `size` elements. Either q_lo is 0, and s_lo too, or s and q
 * have both signs and m_hi is 0: there are no minima. */
struct mmrt_super_type {
    int size; /* 16 or 32 */
    int q_lo, q_hi;
    int s_lo, s_hi;
    int m_hi;
};

struct mmrt_super {
    float d, dmin; /* as binary16 holds them */
    int s[16], m[16];
    int8_t q[256];
};

/* Fits 256 values; fit.h says what best means and what values may be. */
void mmrt_fit_super(const float *x, const struct mmrt_super_type *type, struct mmrt_super *best);

#endif
