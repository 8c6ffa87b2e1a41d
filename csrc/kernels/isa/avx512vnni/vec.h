/* The vector primitives of body/ in AVX-512 with VNNI: 16 floats, 64 bytes, 4 blocks of 32.
 *
 *                 latency/throughput in cycles    Zen 4     Ice Lake
 *   vpdpbusd  zmm                                 4 / 1     5 / 1       64 multiply-adds
 *   vfmadd    zmm                                 4 / 1     4 / 1       16 multiply-adds
 *   vshufi64x2, vpermw                            4 / 1     3 / 1
 * The dot product takes unsigned by signed bytes: weights are the unsigned side.
 */
#include "kernels/isa/x86.h"

/* One line for what is one instruction. */
/* clang-format off */

#define V_ISA        avx512vnni
#define V_FLOATS     16
#define V_BYTES      64
#define V_BLOCKS     4 /* of 32 weights, whose low and high nibbles fill one vector each */
#define V_SHIFT_128  1 /* panels hold weights shifted by 128, so that they are unsigned */
#define V_SLICES(X)  X(12) X(8) X(4) X(2) X(1) /* columns that a panel is multiplied with at once */

typedef __m512 vf;
typedef __m512i vi;

/* ---- bytes ---- */

V_INLINE vi v_load(const void *p) { return _mm512_loadu_si512(p); }
V_INLINE void v_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
V_INLINE vi v_zero_bytes(void) { return _mm512_setzero_si512(); }
V_INLINE vi v_set_byte(int value) { return _mm512_set1_epi8((char)value); }
V_INLINE vi v_sub_bytes(vi a, vi b) { return _mm512_sub_epi8(a, b); }
V_INLINE vi v_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
V_INLINE vi v_or(vi a, vi b) { return _mm512_or_si512(a, b); }
V_INLINE vi v_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
V_INLINE vi v_high_nibbles(vi a) { return v_low_nibbles(_mm512_srli_epi16(a, 4)); }

/* 16 bytes from each of four places: loads with a merging mask need no shuffle port. */
V_INLINE vi v_gather16(const uint8_t *p, size_t apart) {
    __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    a = _mm512_mask_broadcast_i64x2(a, 0x0c, _mm_loadu_si128((const __m128i *)(p + apart)));
    a = _mm512_mask_broadcast_i64x2(a, 0x30, _mm_loadu_si128((const __m128i *)(p + 2 * apart)));
    return _mm512_mask_broadcast_i64x2(a, 0xc0, _mm_loadu_si128((const __m128i *)(p + 3 * apart)));
}

/* 16 wherever one of the 16 bits at each place is set. */
V_INLINE vi v_bit4(const uint8_t *p, size_t apart) {
    uint64_t bits = (uint64_t)mmrt_load_u16(p) | (uint64_t)mmrt_load_u16(p + apart) << 16 |
                    (uint64_t)mmrt_load_u16(p + 2 * apart) << 32 |
                    (uint64_t)mmrt_load_u16(p + 3 * apart) << 48;
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8(16));
}

/* 16 wherever bit `low` (first 32 bytes) or `high` (last 32) is set in the 32 bytes at p. */
V_INLINE vi v_bit4_of32(const uint8_t *p, int low, int high) {
    __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
    __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << low)),
                                     _mm256_set1_epi8((char)(1 << high)), 1);
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(both, bit), _mm512_set1_epi8(16));
}

/* Activations in the order of low and high nibbles: of the 128 at p, pieces of 16 (of blocks with
 * 32 weights) or of 32 (of blocks with 256) by turns. */
V_INLINE void v_split16(const int8_t *p, vi *low, vi *high) {
    __m512i a = v_load(p), b = v_load(p + 64);
    *low = _mm512_shuffle_i64x2(a, b, 0x88);
    *high = _mm512_shuffle_i64x2(a, b, 0xdd);
}
V_INLINE void v_split32(const int8_t *p, vi *low, vi *high) {
    __m512i a = v_load(p), b = v_load(p + 64);
    *low = _mm512_shuffle_i64x2(a, b, 0x44);
    *high = _mm512_shuffle_i64x2(a, b, 0xee);
}

/* The inverses, for weights. */
V_INLINE void v_join16(vi low, vi high, uint8_t *out) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    v_store(out, _mm512_permutex2var_epi64(low, first, high));
    v_store(out + 64, _mm512_permutex2var_epi64(low, second, high));
}
V_INLINE void v_join32(vi low, vi high, uint8_t *out) {
    v_store(out, _mm512_shuffle_i64x2(low, high, 0x44));
    v_store(out + 64, _mm512_shuffle_i64x2(low, high, 0xee));
}

/* Q6_K: the upper two bits, in place, of elements 0 to 63 and 64 to 127 of a half block. */
V_INLINE void v_bits45(const uint8_t *p, int which, vi *low, vi *high) {
    (void)which; /* one vector covers both pieces of a half */
    __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
    const __m512i mask = _mm512_set1_epi8(0x30);
    const __m512i left = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i right = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    *low = _mm512_and_si512(_mm512_sllv_epi16(both, left), mask);
    *high = _mm512_and_si512(_mm512_srlv_epi16(both, right), mask);
}

/* Each lane: acc + the sum of four products, weights unsigned (below 128) or signed. */
V_INLINE vi v_dot_unsigned(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
V_INLINE vi v_dot_signed(vi acc, vi w, vi x) {
    __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(w), signed_x);
}

/* The same against four activations in every lane, for weights as panels hold them. */
V_INLINE vi v_four(const int8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
V_INLINE vi v_dot_panel(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
V_INLINE vi v_dot_start(const int32_t *start) { return _mm512_set1_epi32(*start); }

/* ---- floats ---- */

V_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
V_INLINE vf v_set(float value) { return _mm512_set1_ps(value); }
V_INLINE vf v_loadf(const float *p) { return _mm512_loadu_ps(p); }
V_INLINE void v_storef(float *p, vf a) { _mm512_storeu_ps(p, a); }
V_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
V_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
V_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
V_INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
V_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
V_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
V_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); } /* a * b + c */
V_INLINE vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
V_INLINE vf v_to_float(vi a) { return _mm512_cvtepi32_ps(a); }
V_INLINE float v_sum(vf a) { return _mm512_reduce_add_ps(a); }
V_INLINE float v_largest(vf a) { return _mm512_reduce_max_ps(a); }
V_INLINE vf v_abs(vf a) { return _mm512_abs_ps(a); }

/* a * 2^n for whole n. */
V_INLINE vf v_scale_by_power(vf a, vf n) { return _mm512_scalef_ps(a, n); }

/* Lane i of a where lane i of `index` is below `limit`, else `other`. */
V_INLINE vf v_where_below(vf index, float limit, vf a, vf other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(index, v_set(limit), _CMP_LT_OQ), a);
}
V_INLINE vf v_iota(void) {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

V_INLINE vf v_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
V_INLINE vf v_load_bf16(const void *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Four floats, each in four lanes; or in the first of four, the others zero; or two in eight. */
V_INLINE vf v_each4(const float *p) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(p)), lanes);
}
V_INLINE vf v_first4(const float *p) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_maskz_permutevar_ps(0x1111, _mm512_broadcast_f32x4(_mm_loadu_ps(p)), lanes);
}
/* p[0] and p[2]: the scales of sub-blocks whose low nibbles share a vector. */
V_INLINE vf v_each32(const float *p) {
    return _mm512_insertf32x8(_mm512_set1_ps(p[0]), _mm256_set1_ps(p[2]), 1);
}

/* The halves at four places, each in four lanes. They lie an even distance apart, so words can be
 * picked from loads that stay between the first and the last. */
V_INLINE vf v_each4_f16(const uint8_t *p, size_t apart) {
    __m512i words;
    if (3 * apart + 2 <= 64) {
        const short a = 0, b = (short)(apart / 2), c = (short)apart, d = (short)(3 * apart / 2);
        const __m512i pick = _mm512_castsi256_si512(
            _mm256_setr_epi16(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d));
        words = _mm512_permutexvar_epi16(pick, v_load(p));
    } else {
        const size_t last = 3 * apart + 2 - 64; /* where the second load starts */
        const short a = 0, d = 63;
        const short b = (short)(apart + 2 <= 64 ? apart / 2 : 32 + (apart - last) / 2);
        const short c = (short)(2 * apart + 2 <= 64 ? apart : 32 + (2 * apart - last) / 2);
        const __m512i pick = _mm512_castsi256_si512(
            _mm256_setr_epi16(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d));
        words = _mm512_permutex2var_epi16(v_load(p), pick, v_load(p + last));
    }
    return _mm512_cvtph_ps(_mm512_castsi512_si256(words));
}

/* 16 x 16 dwords, transposed in place. */
V_INLINE void v_transpose(vi r[V_FLOATS]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) { /* quarters 0, 1 and 2, 3 of rows 0 to 7 and 8 to 15 */
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* The bytes of 32 floats rounded to nearest even, for values from -127 to 127. */
V_INLINE void v_store_bytes32(int8_t *p, const vf a[32 / V_FLOATS]) {
    for (int i = 0; i < 2; i++)
        _mm_storeu_si128((__m128i *)(p + 16 * i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a[i])));
}
/* The sum of 16 signed bytes. */
V_INLINE int v_sum_bytes16(const int8_t *p) {
    return _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
