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

/* The nibbles of the first eight bytes in order, low ones first. */
V_INLINE v4 v4_nibbles_of8(v4 bytes) {
    return _mm_unpacklo_epi8(v4_low_nibbles(bytes), v4_high_nibbles(bytes));
}

/* Eight words of 32 bits: one after another, or every second from the second on. */
typedef __m256i w8;

V_INLINE w8 w8_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
V_INLINE w8 w8_load_odd(const uint8_t *p) {
    const __m256 a = _mm256_castsi256_ps(w8_load(p)), b = _mm256_castsi256_ps(w8_load(p + 32));
    return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
}
/* Their upper four bits. */
V_INLINE v4 w8_top_nibbles(w8 a) {
    const __m256i tops = _mm256_srli_epi32(a, 28);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(tops), _mm256_extracti128_si256(tops, 1));
    return _mm_packus_epi16(words, words);
}
/* The eighth sign of each byte: seven are stored, and an even number of the eight is set. */
V_INLINE w8 w8_with_eighth_signs(w8 sevens) {
    const __m256i odd = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i low = _mm256_shuffle_epi8(odd, _mm256_and_si256(sevens, mask));
    __m256i high = _mm256_shuffle_epi8(odd, _mm256_and_si256(_mm256_srli_epi16(sevens, 4), mask));
    return _mm256_or_si256(sevens, _mm256_xor_si256(low, high));
}
/* The signs in the lower 28 bits of each, seven for eight elements. */
V_INLINE void w8_signs_of_28_bits(w8 a, uint32_t signs[8]) {
    __m256i first = _mm256_and_si256(a, _mm256_set1_epi32(0x7f));
    __m256i second = _mm256_and_si256(_mm256_slli_epi32(a, 1), _mm256_set1_epi32(0x7f00));
    __m256i third = _mm256_and_si256(_mm256_slli_epi32(a, 2), _mm256_set1_epi32(0x7f0000));
    __m256i fourth = _mm256_and_si256(_mm256_slli_epi32(a, 3), _mm256_set1_epi32(0x7f000000));
    __m256i sevens = _mm256_or_si256(_mm256_or_si256(first, second), _mm256_or_si256(third, fourth));
    _mm256_storeu_si256((__m256i *)signs, w8_with_eighth_signs(sevens));
}
/* 32 words of 16 bits: nine of an index, seven signs. */
V_INLINE void v_split_9_and_7(const uint8_t *p, uint16_t index[32], uint32_t signs[8]) {
    const __m256i a = w8_load(p), b = w8_load(p + 32), nine = _mm256_set1_epi16(0x1ff);
    _mm256_storeu_si256((__m256i *)index, _mm256_and_si256(a, nine));
    _mm256_storeu_si256((__m256i *)(index + 16), _mm256_and_si256(b, nine));
    __m256i sevens = _mm256_packus_epi16(_mm256_srli_epi16(a, 9), _mm256_srli_epi16(b, 9));
    sevens = _mm256_permute4x64_epi64(sevens, 0xd8);
    _mm256_storeu_si256((__m256i *)signs, w8_with_eighth_signs(sevens));
}
/* Sixteen indices: the bytes at p, and above them some bits of `upper`. */
V_INLINE void v_index16(const uint8_t *p, __m256i upper, int bits, uint16_t *index) {
    upper = _mm256_and_si256(upper, _mm256_set1_epi16((short)bits));
    __m256i lower = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    _mm256_storeu_si256((__m256i *)index, _mm256_or_si256(upper, lower));
}
/* 64 indices of 9 bits: the lower bytes at p, the ninth bits in order in eight bytes. */
V_INLINE void v_indices9(const uint8_t *p, const uint8_t *high, uint16_t index[64]) {
    const __m256i factors = _mm256_broadcastsi128_si256(_mm_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2));
    const __m256i two = _mm256_setr_epi64x(0, 0, 0x0001000100010001, 0x0001000100010001);
    uint64_t bits;
    __builtin_memcpy(&bits, high, sizeof bits);
    __m256i from = _mm256_or_si256(two, _mm256_set1_epi16((short)0xff00)); /* nothing above a byte */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i words = _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)bits), from);
        v_index16(p + 16 * i, _mm256_mullo_epi16(words, factors), 0x100, index + 16 * i);
        from = _mm256_add_epi16(from, _mm256_set1_epi16(2));
    }
}
/* 32 indices of 10 bits: the upper pairs in order in eight bytes. */
V_INLINE void v_indices10(const uint8_t *p, const uint8_t *high, uint16_t index[32]) {
    const __m256i factors = _mm256_set1_epi64x(0x0004001000400100);
    const __m256i four_times = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1,
                                                2, -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i words = _mm256_shuffle_epi8(_mm256_set1_epi32((int)mmrt_load_u32(high + 4 * i)), four_times);
        v_index16(p + 16 * i, _mm256_mullo_epi16(words, factors), 0x300, index + 16 * i);
    }
}
/* Four words at p, each four times. */
V_INLINE __m256i v_words_four_times(const uint8_t *p) {
    const __m256i four_times = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,
                                                4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
    uint64_t words;
    __builtin_memcpy(&words, p, sizeof words);
    return _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)words), four_times);
}
/* 32 indices of 11 bits: the upper three of four are in a word, from bits 0, 3, 6 and 9 on, and a sign
 * for all 32 elements is in bit 15; or they are from bits 0, 4, 8 and 12 on, each under a sign. */
V_INLINE void v_indices11(const uint8_t *p, const uint8_t *high, uint16_t index[32], uint32_t signs[8]) {
    const __m256i factors = _mm256_set1_epi64x(0x0001000800400200); /* to bit 9 */
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i upper = _mm256_mullo_epi16(v_words_four_times(high + 8 * i), factors);
        v_index16(p + 16 * i, _mm256_srli_epi16(upper, 1), 0x700, index + 16 * i);
    }
    __m128i words = _mm_srai_epi16(_mm_loadu_si128((const __m128i *)high), 15);
    _mm256_storeu_si256((__m256i *)signs, _mm256_cvtepi16_epi32(words));
}
V_INLINE void v_indices11_signed(const uint8_t *p, const uint8_t *high, uint16_t index[32], uint32_t signs[8]) {
    const __m256i factors = _mm256_set1_epi64x(0x0001001001001000); /* to bit 12 */
    __m256i minus[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i upper = _mm256_mullo_epi16(v_words_four_times(high + 8 * i), factors);
        minus[i] = _mm256_srai_epi16(upper, 15);
        v_index16(p + 16 * i, _mm256_srli_epi16(upper, 4), 0x700, index + 16 * i);
    }
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(minus[0], minus[1]), 0xd8);
    _mm256_storeu_si256((__m256i *)signs, bytes);
    __asm__("" : "+m"(*(uint32_t (*)[8])signs)); /* or masks would be extracted from the vector */
}

/* Three bits of each of eight words, from bit 12 on; of each of four, from bits 0, 3, 6 and 9 on. */
V_INLINE v4 v4_threes_at_12(const uint8_t *p) {
    __m128i words = _mm_and_si128(_mm_srli_epi16(v4_load(p), 12), _mm_set1_epi16(7));
    return _mm_packus_epi16(words, words);
}
V_INLINE v4 v4_threes_of4(const uint8_t *p) {
    const __m256i factors = _mm256_set1_epi64x(0x0001000800400200); /* to bit 9 */
    __m256i threes = _mm256_mullo_epi16(v_words_four_times(p), factors);
    threes = _mm256_and_si256(_mm256_srli_epi16(threes, 9), _mm256_set1_epi16(7));
    return _mm_packus_epi16(_mm256_castsi256_si128(threes), _mm256_extracti128_si256(threes, 1));
}

/* Four bytes from each place: loads with a merging mask need no shuffle. */
V_INLINE v4 v4_fetch4(const uint32_t *const p[4]) {
#ifdef __AVX512VL__
    __m128i a = _mm_cvtsi32_si128((int)*p[0]);
    a = _mm_mask_broadcastd_epi32(a, 2, _mm_cvtsi32_si128((int)*p[1]));
    a = _mm_mask_broadcastd_epi32(a, 4, _mm_cvtsi32_si128((int)*p[2]));
    return _mm_mask_broadcastd_epi32(a, 8, _mm_cvtsi32_si128((int)*p[3]));
#else
    return _mm_setr_epi32((int)*p[0], (int)*p[1], (int)*p[2], (int)*p[3]);
#endif
}

/* Sixteen E4M3 numbers without a sign as halves, divided by 2^8; 0x7f is zero. */
V_INLINE __m256i v4_ue4m3_halves(v4 a) {
    const __m128i most = _mm_set1_epi8(0x7f);
    __m128i bits = _mm_andnot_si128(_mm_cmpeq_epi8(a, most), _mm_and_si128(a, most));
    return _mm256_slli_epi16(_mm256_cvtepu8_epi16(bits), 7);
}

V_INLINE float v_f16_at(const void *p) { return _cvtsh_ss(mmrt_load_u16(p)); }

#endif
