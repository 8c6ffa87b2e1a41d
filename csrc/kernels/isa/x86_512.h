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

#define V_FLOATS     16
#define V_BYTES      64
#define V_BLOCKS     4 /* of 32 weights, whose low and high nibbles fill one vector each */
#define V_SHIFT_128  1 /* panels hold weights shifted by 128, so that they are unsigned */
enum { V_REGISTERS = 32 };
enum { V_TILE_ROWS = 4, V_TILE_COLUMNS = 6 }; /* of floats that are multiplied at once */
#define V_TILE_SLICES(X) X(6) X(4) X(3) X(2) X(1) /* columns of such tiles */
#define V_SLICES(X)  X(12) X(8) X(4) X(2) X(1) /* columns that a panel is multiplied with at once */
#define V_SLICE_16  8  /* of them at most where sub-blocks have 16 weights */

typedef __m512 vf;
typedef __m512i vi;

/* The compiler must have the value at hand, and knows nothing of what it is after that. */
V_INLINE void v_opaque(vf *a) { __asm__ volatile("" : "+v"(*a)); }
V_INLINE void v_opaque_bytes(vi *a) { __asm__ volatile("" : "+v"(*a)); }

/* ---- bytes ---- */

V_INLINE vi v_load(const void *p) { return _mm512_loadu_si512(p); }
V_INLINE void v_store(void *p, vi a) { _mm512_storeu_si512(p, a); }
V_INLINE vi v_zero_bytes(void) { return _mm512_setzero_si512(); }
V_INLINE vi v_set_byte(int value) { return _mm512_set1_epi8((char)value); }
V_INLINE vi v_sub_bytes(vi a, vi b) { return _mm512_sub_epi8(a, b); }
V_INLINE vi v_or(vi a, vi b) { return _mm512_or_si512(a, b); }
V_INLINE vi v_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
V_INLINE vi v_high_nibbles(vi a) { return v_low_nibbles(_mm512_srli_epi16(a, 4)); }

/* 8 a, of bytes from -1 to 1. */
V_INLINE vi v_times8(vi a) {
    return _mm512_slli_epi16(_mm512_and_si512(a, _mm512_set1_epi8(0x1f)), 3);
}

/* Eight bytes, or four, from each place. */
V_INLINE vi v_fetch8(const uint64_t *const p[8]) {
    return _mm512_setr_epi64((long long)*p[0], (long long)*p[1], (long long)*p[2], (long long)*p[3],
                             (long long)*p[4], (long long)*p[5], (long long)*p[6], (long long)*p[7]);
}
V_INLINE vi v_join4(const v4 parts[4]) {
    vi a = _mm512_inserti64x2(_mm512_castsi128_si512(parts[0]), parts[1], 1);
    return _mm512_inserti64x2(_mm512_inserti64x2(a, parts[2], 2), parts[3], 3);
}

V_INLINE vi v_fetch4(const uint32_t *const p[16]) {
    const v4 parts[4] = {v4_fetch4(p), v4_fetch4(p + 4), v4_fetch4(p + 8), v4_fetch4(p + 12)};
    return v_join4(parts);
}

/* -a wherever the bit of a byte is set. */
V_INLINE vi v_negate(vi a, const uint32_t bits[2]) {
    const __mmask64 minus = _cvtu64_mask64(bits[0] | (uint64_t)bits[1] << 32);
    return _mm512_mask_sub_epi8(a, minus, _mm512_setzero_si512(), a);
}

/* table[a], 16 signed bytes by numbers from 0 to 15. */
V_INLINE vi v_look_up(const int8_t *table, vi a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), a);
}

/* 16 bytes from `offset` on in each of four blocks: loads with a merging mask need no shuffle. */
V_INLINE vi v_gather16(const uint8_t *blocks, size_t bytes, size_t offset) {
    const __m128i *p[4];
    for (size_t i = 0; i < 4; i++)
        p[i] = (const __m128i *)(blocks + i * bytes + offset);
    vi a = _mm512_castsi128_si512(_mm_loadu_si128(p[0]));
    a = _mm512_mask_broadcast_i64x2(a, 0x0c, _mm_loadu_si128(p[1]));
    a = _mm512_mask_broadcast_i64x2(a, 0x30, _mm_loadu_si128(p[2]));
    return _mm512_mask_broadcast_i64x2(a, 0xc0, _mm_loadu_si128(p[3]));
}

/* 16 wherever one of the 16 bits at each place is set. */
V_INLINE vi v_bit4(const uint8_t *p, size_t apart) {
    uint64_t bits = (uint64_t)mmrt_load_u16(p) | (uint64_t)mmrt_load_u16(p + apart) << 16 |
                    (uint64_t)mmrt_load_u16(p + 2 * apart) << 32 |
                    (uint64_t)mmrt_load_u16(p + 3 * apart) << 48;
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8(16));
}

/* A digit of each byte, which holds five of base 3 as a fraction of 256: times 3^n it has digit n in
 * front. A power stands for two bytes. */
V_INLINE vi v_digits_of_base3(vi a, const uint16_t *powers) {
    const vi power = v_load(powers), three = _mm512_set1_epi16(3);
    vi even = _mm512_mullo_epi16(_mm512_slli_epi16(a, 8), power);
    vi odd = _mm512_mullo_epi16(_mm512_and_si512(a, _mm512_set1_epi16((short)0xff00)), power);
    return v_or(_mm512_mulhi_epu16(even, three),
                _mm512_slli_epi16(_mm512_mulhi_epu16(odd, three), 8));
}

/* Of types with 256 weights, 64 in order from 64 i on: nibbles (of 32 bytes, or 16, at p the low ones,
 * then the high ones); pairs of bits (bit pairs of 32 bytes by turns), shifted up by `up`; and `value`
 * wherever the next of the bits of 32 bytes is set. */
V_INLINE vi v_twice32(const uint8_t *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
}
V_INLINE vi v_halves_words(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi16((short)low), _mm256_set1_epi16((short)high), 1);
}
V_INLINE vi v_nibbles_of32(const uint8_t *p, int i) {
    return v_low_nibbles(_mm512_srlv_epi16(v_twice32(p + 32 * i), v_halves_words(0, 4)));
}
V_INLINE vi v_nibbles_of16(const uint8_t *p, int i) {
    vi q = v_twice32(p + 32 * i); /* pieces 0, 1, 0, 1 of 16 */
    q = _mm512_shuffle_i64x2(q, q, 0x50);
    const vi down = _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0,
                                      0x0004000400040004, 0x0004000400040004);
    return v_low_nibbles(_mm512_srlv_epi16(q, down));
}
/* Nibbles of 32 bytes, of each eight of them the low ones, then the high ones. */
V_INLINE vi v_nibbles_of8(const uint8_t *p) {
    const vi twice = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    vi q = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    q = _mm512_permutexvar_epi64(twice, q);
    return v_low_nibbles(_mm512_srlv_epi64(q, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4)));
}
V_INLINE vi v_pairs_of32(const uint8_t *p, int i, int up) {
    const int first = i % 2 * 4; /* the shifts down are first and first + 2 */
    vi q = v_twice32(p + 32 * (i / 2));
    if (first >= up)
        q = _mm512_srlv_epi16(q, v_halves_words(first - up, first + 2 - up));
    else
        q = _mm512_sllv_epi16(q, v_halves_words(up - first, up - first - 2));
    return _mm512_and_si512(q, _mm512_set1_epi8((char)(3 << up)));
}
/* `value` wherever the next of 64 bits is set; the next 64 pairs of bits. */
V_INLINE vi v_bits_in_order(const uint8_t *p, int value) {
    uint64_t bits = (uint64_t)mmrt_load_u32(p) | (uint64_t)mmrt_load_u32(p + 4) << 32;
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8((char)value));
}
V_INLINE vi v_pairs_in_order(const uint8_t *p) {
    vi a = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    a = v_or(a, _mm512_slli_epi32(a, 12)); /* the third pair to the third byte, */
    a = v_or(a, _mm512_slli_epi32(a, 6));  /* the second and the fourth to theirs */
    return _mm512_and_si512(a, _mm512_set1_epi8(3));
}
V_INLINE vi v_bits_of32(const uint8_t *p, int i, int value) {
    vi bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << 2 * i)),
                                _mm256_set1_epi8((char)(2 << 2 * i)), 1);
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(v_twice32(p), bit),
                                 _mm512_set1_epi8((char)value));
}

/* Planes of weights, joined in order. */
V_INLINE void v_join16(vi low, vi high, uint8_t *out) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    v_store(out, _mm512_permutex2var_epi64(low, first, high));
    v_store(out + 64, _mm512_permutex2var_epi64(low, second, high));
}

/* Each lane: acc + the sum of four products, weights unsigned. */
V_INLINE vi v_dot_unsigned(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }

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
V_INLINE vf v_load_i8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V_INLINE vf v_load_bf16(const void *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

#ifdef __AVX512BF16__
#define V_PAIRS 32 /* bfloat16 numbers in a vector */

/* The first n, and zeros if there are fewer. */
V_INLINE __mmask32 v_first(size_t n) { return n < V_PAIRS ? ((__mmask32)1 << n) - 1 : 0xffffffff; }
V_INLINE vi v_load_pairs(const void *p, size_t n) { return _mm512_maskz_loadu_epi16(v_first(n), p); }
V_INLINE void v_store_pairs(uint16_t *to, const float *p, size_t n) {
    const __mmask32 first = v_first(n);
    __m512 a = _mm512_maskz_loadu_ps((__mmask16)first, p);
    __m512 b = _mm512_maskz_loadu_ps((__mmask16)(first >> 16), p + 16);
    v_store(to, (vi)_mm512_cvtne2ps_pbh(b, a));
}
/* Each lane: acc + the sum of two products. */
V_INLINE vf v_dot_pairs(vf acc, vi w, vi x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
#endif

/* ---- 16 floats: scales of a block of 256 ---- */

typedef __m512 v16;

V_INLINE v16 v16_zero(void) { return v_zero(); }
V_INLINE v16 v16_load(const float *p) { return v_loadf(p); }
V_INLINE v16 v16_mul(v16 a, v16 b) { return v_mul(a, b); }
V_INLINE v16 v16_add(v16 a, v16 b) { return v_add(a, b); }
V_INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return v_fma(a, b, c); }
V_INLINE void v16_store(float *p, v16 a) { v_storef(p, a); }
V_INLINE v16 v16_from_u8(v4 bytes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
V_INLINE v16 v16_from_i8(v4 bytes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
V_INLINE v16 v16_from_ue4m3(v4 bytes) {
    return v_mul(_mm512_cvtph_ps(v4_ue4m3_halves(bytes)), v_set(256));
}
V_INLINE v16 v16_set(float value) { return v_set(value); }
/* The half at p in all; or that and the next, eight times each. */
V_INLINE v16 v16_from_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)mmrt_load_u16(p)));
}
V_INLINE v16 v16_from_two_f16(const uint8_t *p) {
    const __m256i order = _mm256_setr_epi64x(0x0100010001000100, 0x0100010001000100,
                                             0x0302030203020302, 0x0302030203020302);
    __m256i both = _mm256_set1_epi32((int)mmrt_load_u32(p));
    return _mm512_cvtph_ps(_mm256_shuffle_epi8(both, order));
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
