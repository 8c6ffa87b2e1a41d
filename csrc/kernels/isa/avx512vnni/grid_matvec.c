/* Few columns of types whose elements are entries of a grid: IQ2 and IQ3. A grid is looked up in
 * vectors, 32 entries at once, instead of entry by entry in memory.
 *
 * An entry is 16 bits here: the levels of eight elements in two bits each, or of four in four. Such
 * words for all 256 weights of a block are taken apart into four vectors of bytes: the first has
 * elements 0, 4, 8 and so on, the next 1, 5, 9. `strided` of mmrt_columns has the activations in
 * this order, so that lane i of their dot products is the sum of elements 16 i to 16 i + 15.
 *
 *                 latency/throughput in cycles    Zen 4     Ice Lake
 *   vpermi2w  zmm                                 5 / 1     7 / 2       32 of 64 words
 *   vpshufb   zmm                                 2 / 1     1 / 1       64 of 16 bytes
 */
#define V_ISA avx512vnni
#include "kernels/isa/x86_512.h"

#include "kernels/body/names.inc"

#include "kernels/body/types.inc"

#include "kernels/body/grid_types.inc"

/* ---- tables ---- */

#define ROW(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)                                        \
    0x##a, 0x##b, 0x##c, 0x##d, 0x##e, 0x##f, 0x##g, 0x##h, 0x##i, 0x##j, 0x##k, 0x##l, 0x##m,     \
        0x##n, 0x##o, 0x##p,

_Alignas(64) static const uint16_t entries_iq2_xxs[256] = {
#define MMRT_IQ2_XXS ROW
#include "quant/iq2_grids.def"
};
_Alignas(64) static const uint16_t entries_iq2_xs[512] = {
#define MMRT_IQ2_XS ROW
#include "quant/iq2_grids.def"
};
_Alignas(64) static const uint16_t entries_iq2_s[1024] = {
#define MMRT_IQ2_S ROW
#include "quant/iq2_grids.def"
};
_Alignas(64) static const uint16_t entries_iq3_xxs[256] = {
#define MMRT_IQ3_XXS ROW
#include "quant/iq3_grids.def"
};
_Alignas(64) static const uint16_t entries_iq3_s[512] = {
#define MMRT_IQ3_S ROW
#include "quant/iq3_grids.def"
};
#undef ROW

/* What the levels stand for, and a sign: of IQ2 in either of the two bits above them, the other of
 * which does not matter. */
#define PLUS(a)       (int8_t)(128 + (a))
#define MINUS(a)      (int8_t)(128 - (a))
#define LEVELS4(SIGN) SIGN(8), SIGN(25), SIGN(43), 0
static const int8_t iq2_sign_first[16] = {LEVELS4(PLUS), LEVELS4(MINUS), LEVELS4(PLUS),
                                          LEVELS4(MINUS)};
static const int8_t iq2_sign_second[16] = {LEVELS4(PLUS), LEVELS4(PLUS), LEVELS4(MINUS),
                                           LEVELS4(MINUS)};
#define LEVELS_XXS(S) S(4), S(12), S(20), S(28), S(36), S(44), S(52), S(62)
#define LEVELS_S(S)   S(1), S(3), S(5), S(7), S(9), S(11), S(13), S(15)
static const int8_t levels_iq3_xxs[16] = {LEVELS_XXS(PLUS), LEVELS_XXS(MINUS)};
static const int8_t levels_iq3_s[16] = {LEVELS_S(PLUS), LEVELS_S(MINUS)};

/* Eight signs of which seven are stored: four at the bottom of each byte. */
#define PARITY(s)  (((s) ^ (s) >> 1 ^ (s) >> 2 ^ (s) >> 3 ^ (s) >> 4 ^ (s) >> 5 ^ (s) >> 6) & 1)
#define SIGNS1(s)  ((s) & 15) | ((s) >> 4 | PARITY(s) << 3) << 8
#define SIGNS4(s)  SIGNS1(s), SIGNS1((s) + 1), SIGNS1((s) + 2), SIGNS1((s) + 3)
#define SIGNS16(s) SIGNS4(s), SIGNS4((s) + 4), SIGNS4((s) + 8), SIGNS4((s) + 12)
#define SIGNS64(s) SIGNS16(s), SIGNS16((s) + 16), SIGNS16((s) + 32), SIGNS16((s) + 48)
_Alignas(64) static const uint16_t even_signs[128] = {SIGNS64(0), SIGNS64(64)};

/* table[index] for words, of which the lower six bits are looked at here; `bits` are the others, by
 * which one of `parts` of 64 entries is chosen. */
V_INLINE vi look_up_words(const uint16_t *table, const int parts, vi index, const __mmask32 *bits) {
    vi found[16];
#pragma GCC unroll 16
    for (int i = 0; i < parts; i++)
        found[i] =
            _mm512_permutex2var_epi16(v_load(table + 64 * i), index, v_load(table + 64 * i + 32));
#pragma GCC unroll 4
    for (int n = parts / 2; n; n /= 2, bits++)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++)
            found[i] = _mm512_mask_mov_epi16(found[2 * i], *bits, found[2 * i + 1]);
    return found[0];
}

V_INLINE __mmask32 words_with(vi words, int bit) {
    return _mm512_test_epi16_mask(words, _mm512_set1_epi16((short)(1 << bit)));
}

/* ---- blocks ---- */

struct grid_block {
    vi weights[4]; /* elements 4 n + p, plus 128 */
    vf scale;      /* of 16 elements each */
};

/* Where a bit of `which` is set that of a, else that of b. */
V_INLINE vi select_bits(int which, vi a, vi b) {
    return _mm512_ternarylogic_epi32(v_set_byte(which), a, b, 0xca);
}
V_INLINE vi twice(vi bytes) {
    return _mm512_add_epi8(bytes, bytes);
}

/* Of words with eight levels of two bits, and words with eight signs, four at the bottom of each
 * byte. Of an index the lower four bits count, if the highest is not set. */
V_INLINE void eight_levels(vi words, vi signs, struct grid_block *g) {
    const vi up = twice(twice(signs));
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
        const vi index = select_bits(3, _mm512_srli_epi16(words, 2 * p), p < 2 ? up : signs);
        g->weights[p] = v_look_up(p % 2 ? iq2_sign_second : iq2_sign_first, index);
    }
}

/* Of words with four levels in a nibble each: the even entries, and the odd. */
V_INLINE void four_levels(vi even, vi odd, vi signs, const int8_t *levels, struct grid_block *g) {
    const vi lower = _mm512_set1_epi16(0x00ff);
    const vi first = _mm512_mask_mov_epi8(even, 0xaaaaaaaaaaaaaaaa, _mm512_slli_epi16(odd, 8));
    const vi second = _mm512_ternarylogic_epi32(lower, _mm512_srli_epi16(even, 8), odd, 0xca);
    const vi up1 = twice(signs), up2 = twice(up1), up3 = twice(up2);
    g->weights[0] = v_look_up(levels, select_bits(7, first, up3));
    g->weights[1] = v_look_up(levels, select_bits(7, _mm512_srli_epi16(first, 4), up2));
    g->weights[2] = v_look_up(levels, select_bits(7, second, up1));
    g->weights[3] = v_look_up(levels, select_bits(7, _mm512_srli_epi16(second, 4), signs));
}

V_INLINE vi stored_signs(const uint8_t *p) {
    const vi words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
    return v_low_nibbles(v_or(words, _mm512_slli_epi16(words, 4)));
}
V_INLINE vi seven_of_eight_signs(vi sevens) {
    const __mmask32 bits[] = {words_with(sevens, 6)};
    return look_up_words(even_signs, 2, sevens, bits);
}
/* Four signs of seven bits in every dword of `sevens`, which lie apart: as words. */
V_INLINE vi signs_of_28_bits(vi sevens, const __m128i order) {
    const vi words = _mm512_shuffle_epi8(sevens, _mm512_broadcast_i32x4(order));
    const vi down = _mm512_set1_epi64(0x0005000600070000);
    return seven_of_eight_signs(_mm512_srlv_epi16(words, down));
}

/* (s + 1/2) * d * factor, s the upper four bits of dwords. */
V_INLINE vf scale_of_tops(vi dwords, const uint8_t *d, float factor) {
    const vf s = v_to_float(_mm512_srli_epi32(dwords, 28));
    return v_mul(v_add(s, v_set(0.5f)), v_mul(v16_from_f16(d), v_set(factor)));
}

V_INLINE void block_IQ2_XXS(const uint8_t *block, struct grid_block *g) {
    const struct mmrt_block_iq2_xxs *b = (const void *)block;
    const vi qs = v_load(b->qs);
    const __m128i bytes = _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1);
    const vi index = _mm512_shuffle_epi8(qs, _mm512_broadcast_i32x4(bytes));
    const __mmask32 bits[] = {words_with(index, 6), words_with(index, 7)};
    const __m128i odd = _mm_setr_epi8(4, 5, 4, 5, 5, 6, 6, 7, 12, 13, 12, 13, 13, 14, 14, 15);
    eight_levels(look_up_words(entries_iq2_xxs, 4, index, bits), signs_of_28_bits(qs, odd), g);
    g->scale = scale_of_tops(_mm512_shuffle_epi32(qs, 0xf5), b->d, 0.25f);
}

V_INLINE void block_IQ2_XS(const uint8_t *block, struct grid_block *g) {
    const vi qs = v_load(((const struct mmrt_block_iq2_xs *)block)->qs);
    const __mmask32 bits[] = {words_with(qs, 6), words_with(qs, 7), words_with(qs, 8)};
    eight_levels(look_up_words(entries_iq2_xs, 8, qs, bits),
                 seven_of_eight_signs(_mm512_srli_epi16(qs, 9)), g);
    v16 none;
    scales_iq2_xs(block, &g->scale, &none);
}

/* Of the 64 bits at p in order, one for each word: the even ones, and the odd. */
V_INLINE void pairs_of_bits(const uint8_t *p, __mmask32 *even, __mmask32 *odd) {
    uint64_t bits;
    memcpy(&bits, p, sizeof bits);
    const vi four_times = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)),
        _mm512_set_epi64(0x0606060606060606, 0x0606060606060606, 0x0404040404040404,
                         0x0404040404040404, 0x0202020202020202, 0x0202020202020202, 0, 0));
    const vi words = _mm512_shuffle_epi8(_mm512_set1_epi64((long long)bits), four_times);
    *even = _mm512_test_epi16_mask(words, _mm512_set1_epi64(0x0040001000040001));
    *odd = _mm512_test_epi16_mask(words, _mm512_set1_epi64(0x0080002000080002));
}

V_INLINE void block_IQ2_S(const uint8_t *block, struct grid_block *g) {
    const struct mmrt_block_iq2_s *b = (const void *)block;
    const vi index = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)b->qs));
    __mmask32 bits[4] = {words_with(index, 6), words_with(index, 7)};
    pairs_of_bits(b->qh, &bits[2], &bits[3]);
    eight_levels(look_up_words(entries_iq2_s, 16, index, bits), stored_signs(b->signs), g);
    v16 none;
    scales_iq2_s(block, &g->scale, &none);
}

V_INLINE void block_IQ3_XXS(const uint8_t *block, struct grid_block *g) {
    const struct mmrt_block_iq3_xxs *b = (const void *)block;
    const vi qs = v_load(b->qs);
    const __mmask32 even[] = {words_with(qs, 6), words_with(qs, 7)};
    const __mmask32 odd[] = {words_with(qs, 14), words_with(qs, 15)};
    const vi scales = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)b->scales));
    const __m128i lower = _mm_setr_epi8(0, 1, 0, 1, 1, 2, 2, 3, 8, 9, 8, 9, 9, 10, 10, 11);
    four_levels(look_up_words(entries_iq3_xxs, 4, qs, even),
                look_up_words(entries_iq3_xxs, 4, _mm512_srli_epi16(qs, 8), odd),
                signs_of_28_bits(scales, lower), levels_iq3_xxs, g);
    g->scale = scale_of_tops(_mm512_shuffle_epi32(scales, 0xa0), b->d, 0.5f);
}

V_INLINE void block_IQ3_S(const uint8_t *block, struct grid_block *g) {
    const struct mmrt_block_iq3_s *b = (const void *)block;
    const vi qs = v_load(b->qs);
    __mmask32 even[3] = {words_with(qs, 6), words_with(qs, 7)};
    __mmask32 odd[3] = {words_with(qs, 14), words_with(qs, 15)};
    pairs_of_bits(b->qh, &even[2], &odd[2]);
    four_levels(look_up_words(entries_iq3_s, 8, qs, even),
                look_up_words(entries_iq3_s, 8, _mm512_srli_epi16(qs, 8), odd),
                stored_signs(b->signs), levels_iq3_s, g);
    const v4 s = v4_nibbles_of8(v4_set(mmrt_load_u32(b->scales), 0, 0, 0));
    g->scale = half_more(_mm_unpacklo_epi8(s, s), b->d, 2.0f);
}

/* ---- products ---- */

V_INLINE vf grid_add(const struct grid_block *g, const struct mmrt_columns *columns,
                     size_t from_last, size_t first, vf acc) {
    const size_t at = from_last * columns->stride + first;
    const size_t column = columns->last - from_last;
    vi dot = v_load(columns->start16 + (column * columns->stride + first) / 16);
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++)
        dot = v_dot_unsigned(dot, g->weights[p], v_load(columns->strided + at + p * V_BYTES));
    const vi each_twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const vf d = _mm512_permutexvar_ps(
        each_twice, _mm512_castps256_ps512(_mm256_loadu_ps(columns->few_d + at / MMRT_GROUP)));
    /* The product of scales alone might be too small for a normal number, which costs time. */
    return v_fma(g->scale, v_mul(v_to_float(dot), d), acc);
}

V_INLINE void matvec_grid(void (*open)(const uint8_t *block, struct grid_block *g), size_t bytes,
                          const uint8_t *w, size_t row_bytes, size_t n_rows,
                          const struct mmrt_columns *columns, size_t n, float *y, size_t y_stride) {
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *block = w + r * row_bytes;
        vf acc[MMRT_FEW];
        for (size_t c = 0; c < n; c++)
            acc[c] = v_zero();
        for (size_t first = 0; first < columns->k; first += 256, block += bytes) {
            struct grid_block g;
            open(block, &g);
            for (size_t c = 0; c < n; c++)
                acc[c] = grid_add(&g, columns, n - 1 - c, first, acc[c]);
        }
        for (size_t c = 0; c < n; c++)
            y[c * y_stride + r] = v_sum(acc[c]);
    }
}

#define MATVEC(type)                                                                               \
    const size_t FN(few_##type) = MMRT_FEW;                                                        \
    void FN(matvec_##type)(const void *w, size_t row_bytes, size_t n_rows, const void *next,       \
                           const struct mmrt_columns *columns, size_t n, float *y,                 \
                           size_t y_stride) {                                                      \
        (void)next;                                                                                \
        if (n == 1)                                                                                \
            matvec_grid(block_##type, MMRT_BYTES_##type, w, row_bytes, n_rows, columns, 1, y,      \
                        y_stride);                                                                 \
        else                                                                                       \
            matvec_grid(block_##type, MMRT_BYTES_##type, w, row_bytes, n_rows, columns, n, y,      \
                        y_stride);                                                                 \
    }
MATVEC(IQ2_XXS)
MATVEC(IQ2_XS)
MATVEC(IQ2_S)
MATVEC(IQ3_XXS)
MATVEC(IQ3_S)
#undef MATVEC
