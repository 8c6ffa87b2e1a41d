/* What AVX2 and AVX-512 units share: eight floats at a time, and single halves. */
#ifndef MMRT_KERNELS_X86_H
#define MMRT_KERNELS_X86_H

#include <immintrin.h>
#include <stdbool.h>

#include "quant/f16.h"

#define V_INLINE static inline __attribute__((always_inline))

/* One line for what is one instruction. */
/* clang-format off */

typedef __m256 vf8;

V_INLINE vf8 v8_zero(void) { return _mm256_setzero_ps(); }
V_INLINE vf8 v8_set(float value) { return _mm256_set1_ps(value); }
V_INLINE vf8 v8_load(const float *p) { return _mm256_loadu_ps(p); }
V_INLINE void v8_store(float *p, vf8 a) { _mm256_storeu_ps(p, a); }
V_INLINE vf8 v8_mul(vf8 a, vf8 b) { return _mm256_mul_ps(a, b); }
V_INLINE vf8 v8_fma(vf8 a, vf8 b, vf8 c) { return _mm256_fmadd_ps(a, b, c); }
V_INLINE vf8 v8_from_bytes(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
V_INLINE float v8_sum(vf8 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* 16 bytes: integer scales. */
typedef __m128i v4;

V_INLINE v4 v4_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
V_INLINE v4 v4_set(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return _mm_setr_epi32((int)a, (int)b, (int)c, (int)d);
}
/* The 8 scales and 8 minima of a Q4_K or Q5_K block: words of bytes, once the upper two bits of the
 * second and the last four have been fetched from above the first and the third. */
V_INLINE v4 v4_q4_k_scales(const uint8_t *block) {
    const __m128i order = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i above = _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11);
    const __m128i mask = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
    __m128i words = v4_load(block);
    __m128i low = _mm_srlv_epi32(_mm_shuffle_epi8(words, order), _mm_setr_epi32(0, 0, 0, 4));
    __m128i high = _mm_srli_epi16(_mm_shuffle_epi8(words, above), 2);
    return _mm_or_si128(_mm_and_si128(low, mask), _mm_and_si128(high, _mm_set1_epi8(0x30)));
}
/* The 8 scales of an IQ4_XS block: nibbles of four bytes, under pairs of bits of a word. */
V_INLINE v4 v4_iq4_xs_scales(const uint8_t *block) {
    const uint32_t nibbles = mmrt_load_u32(block + 4);
    __m128i low = _mm_cvtsi32_si128((int)(nibbles & 0x0f0f0f0f));
    __m128i high = _mm_cvtsi32_si128((int)(nibbles >> 4 & 0x0f0f0f0f));
    const __m128i to_top = _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1);
    __m128i pairs = _mm_mullo_epi16(_mm_set1_epi16((short)mmrt_load_u16(block + 2)), to_top);
    pairs = _mm_slli_epi16(_mm_srli_epi16(pairs, 14), 4);
    return _mm_or_si128(_mm_unpacklo_epi8(low, high), _mm_packus_epi16(pairs, _mm_setzero_si128()));
}
V_INLINE v4 v4_low_nibbles(v4 a) { return _mm_and_si128(a, _mm_set1_epi8(15)); }
V_INLINE v4 v4_high_nibbles(v4 a) { return v4_low_nibbles(_mm_srli_epi16(a, 4)); }

/* The nibbles of eight bytes in order, low ones first. */
V_INLINE v4 v4_nibbles_of8(const uint8_t *p) {
    __m128i bytes = _mm_loadl_epi64((const __m128i *)p);
    return _mm_unpacklo_epi8(v4_low_nibbles(bytes), v4_high_nibbles(bytes));
}

/* Sixteen E4M3 numbers without a sign as halves, divided by 2^8; 0x7f is zero. */
V_INLINE __m256i v4_ue4m3_halves(v4 a) {
    const __m128i most = _mm_set1_epi8(0x7f);
    __m128i bits = _mm_andnot_si128(_mm_cmpeq_epi8(a, most), _mm_and_si128(a, most));
    return _mm256_slli_epi16(_mm256_cvtepu8_epi16(bits), 7);
}

V_INLINE float v_f16_at(const void *p) { return _cvtsh_ss(mmrt_load_u16(p)); }

#endif
