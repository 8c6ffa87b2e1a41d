/* The vector primitives of body/ in AVX2 with FMA and F16C: 8 floats, 32 bytes, 2 blocks of 32.
 * Where AVX-512 has better instructions for the same vectors, units built for it use those.
 *
 *                 latency/throughput in cycles    Zen 4     Skylake
 *   vpmaddubsw ymm                                3 / 0.5   5 / 0.5     32 multiply-adds, int16
 *   vpmaddwd   ymm                                3 / 0.5   5 / 0.5     sums of pairs, int32
 *   vfmadd     ymm                                4 / 0.5   4 / 0.5     8 multiply-adds
 * maddubs saturates at 16 bits: unsigned weights stay below 128, or below 64 where two of its sums
 * are added, and 32 where four are; signed ones go in as absolute values with their sign moved to
 * the activations.
 */
#include "kernels/isa/x86.h"

/* One line for what is one instruction. */
/* clang-format off */

#define V_FLOATS     8
#define V_BYTES      32
#define V_BLOCKS     2 /* of 32 weights, whose low and high nibbles fill one vector each */
#define V_SHIFT_128  0 /* panels hold signed weights, */
#define V_AS_STORED  1 /* or unsigned ones, whose bias is taken off the start of their sums */
#define V_OWN_PANELS
enum { V_REGISTERS = 16 };
enum { V_TILE_ROWS = 2, V_TILE_COLUMNS = 4 }; /* of floats that are multiplied at once */
#define V_TILE_SLICES(X) X(4) X(2) X(1) /* columns of such tiles */
#define V_SLICES(X)  X(4) X(2) X(1) /* columns that a panel is multiplied with at once */
#define V_SLICE_16  4  /* of them at most where sub-blocks have 16 weights */

typedef __m256 vf;
typedef __m256i vi;

/* The compiler must have the value at hand, and knows nothing of what it is after that. */
V_INLINE void v_opaque(vf *a) { __asm__ volatile("" : "+x"(*a)); }
V_INLINE void v_opaque_bytes(vi *a) { __asm__ volatile("" : "+x"(*a)); }

/* ---- bytes ---- */

V_INLINE vi v_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
V_INLINE void v_store(void *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
V_INLINE vi v_zero_bytes(void) { return _mm256_setzero_si256(); }
V_INLINE vi v_set_byte(int value) { return _mm256_set1_epi8((char)value); }
V_INLINE vi v_sub_bytes(vi a, vi b) { return _mm256_sub_epi8(a, b); }
V_INLINE vi v_or(vi a, vi b) { return _mm256_or_si256(a, b); }
V_INLINE vi v_low_nibbles(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
V_INLINE vi v_high_nibbles(vi a) { return v_low_nibbles(_mm256_srli_epi16(a, 4)); }

/* 8 a, of bytes from -1 to 1. */
V_INLINE vi v_times8(vi a) {
    return _mm256_slli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(0x1f)), 3);
}

/* Eight bytes, or four, from each place. */
V_INLINE vi v_fetch8(const uint64_t *const p[4]) {
#ifdef __AVX512VL__
    vi a = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)p[0]));
    a = _mm256_mask_broadcastq_epi64(a, 2, _mm_loadl_epi64((const __m128i *)p[1]));
    a = _mm256_mask_broadcastq_epi64(a, 4, _mm_loadl_epi64((const __m128i *)p[2]));
    return _mm256_mask_broadcastq_epi64(a, 8, _mm_loadl_epi64((const __m128i *)p[3]));
#else
    return _mm256_setr_epi64x((long long)*p[0], (long long)*p[1], (long long)*p[2], (long long)*p[3]);
#endif
}
V_INLINE vi v_fetch4(const uint32_t *const p[8]) {
    return _mm256_set_m128i(v4_fetch4(p + 4), v4_fetch4(p));
}

V_INLINE vi v_join4(const v4 parts[2]) { return _mm256_set_m128i(parts[1], parts[0]); }

/* -a wherever the bit of a byte is set. */
V_INLINE vi v_negate(vi a, const uint32_t *bits) {
#ifdef __AVX512BW__
    return _mm256_mask_sub_epi8(a, _cvtu32_mask32(*bits), _mm256_setzero_si256(), a);
#else
    const vi byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const vi bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    vi spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)*bits), byte), bit);
    vi minus = _mm256_cmpeq_epi8(spread, bit);
    return _mm256_sub_epi8(_mm256_xor_si256(a, minus), minus);
#endif
}

/* table[a], 16 signed bytes by numbers from 0 to 15. */
V_INLINE vi v_look_up(const int8_t *table, vi a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), a);
}

/* 16 bytes from `offset` on in each of two blocks. */
V_INLINE vi v_gather16(const uint8_t *blocks, size_t bytes, size_t offset) {
    return _mm256_loadu2_m128i((const __m128i *)(blocks + bytes + offset),
                               (const __m128i *)(blocks + offset));
}

/* 16 wherever one of the 16 bits at each place is set. */
V_INLINE vi v_bit4(const uint8_t *p, size_t apart) {
#ifdef __AVX512BW__
    uint32_t bits = (uint32_t)mmrt_load_u16(p) | (uint32_t)mmrt_load_u16(p + apart) << 16;
    return _mm256_maskz_mov_epi8(_cvtu32_mask32(bits), _mm256_set1_epi8(16));
#else
    __m256i words = _mm256_set_m128i(_mm_set1_epi16((short)mmrt_load_u16(p + apart)),
                                     _mm_set1_epi16((short)mmrt_load_u16(p)));
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0, 0x0101010101010101);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i picked = _mm256_and_si256(_mm256_shuffle_epi8(words, byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(picked, bit), _mm256_set1_epi8(16));
#endif
}

/* A digit of each byte, which holds five of base 3 as a fraction of 256: times 3^n it has digit n in
 * front. A power stands for two bytes. */
V_INLINE vi v_digits_of_base3(vi a, const uint16_t *powers) {
    const vi power = v_load(powers), three = _mm256_set1_epi16(3);
    vi even = _mm256_mullo_epi16(_mm256_slli_epi16(a, 8), power);
    vi odd = _mm256_mullo_epi16(_mm256_and_si256(a, _mm256_set1_epi16((short)0xff00)), power);
    return v_or(_mm256_mulhi_epu16(even, three),
                _mm256_slli_epi16(_mm256_mulhi_epu16(odd, three), 8));
}

/* Of such bytes less 128: the first digit; three times them, which have the next in front; 16 at p,
 * then three times them; the lower half of a, then four at p times 1, 3, 9 and 27. What is less by
 * 128 is so after multiplication with an odd number. */
V_INLINE vi v_first_digit(vi a) {
    const vi zero = _mm256_cmpgt_epi8(v_set_byte(86 - 128), a), two = _mm256_cmpgt_epi8(a, v_set_byte(170 - 128));
    return _mm256_sub_epi8(_mm256_add_epi8(v_set_byte(1), zero), two);
}
V_INLINE vi v_times3(vi a) { return _mm256_add_epi8(a, _mm256_add_epi8(a, a)); }
V_INLINE vi v_then_times3(const uint8_t *p) {
    const __m128i a = _mm_xor_si128(v4_load(p), _mm_set1_epi8(-128));
    return _mm256_set_m128i(_mm_add_epi8(a, _mm_add_epi8(a, a)), a);
}
V_INLINE vi v_lower_then_powers(vi a, const uint8_t *p) {
    const __m128i four = _mm_set1_epi32((int)(mmrt_load_u32(p) ^ 0x80808080));
    const __m128i powers = _mm_setr_epi16(1, 1, 3, 3, 9, 9, 27, 27), odd = _mm_set1_epi16((short)0xff00);
    __m128i even = _mm_andnot_si128(odd, _mm_mullo_epi16(four, powers));
    return _mm256_inserti128_si256(a, _mm_or_si128(even, _mm_mullo_epi16(_mm_and_si128(four, odd), powers)), 1);
}

/* Of types with 256 weights, 32 in order from 32 i on: nibbles (of 32 bytes, or 16, at p the low ones,
 * then the high ones); pairs of bits (bit pairs of 32 bytes by turns), shifted up by `up`; and `value`
 * wherever bit i of 32 bytes is set. */
V_INLINE vi v_nibbles_of32(const uint8_t *p, int i) {
    vi q = v_load(p + 32 * (i / 2));
    return i % 2 ? v_high_nibbles(q) : v_low_nibbles(q);
}
V_INLINE vi v_nibbles_of16(const uint8_t *p, int i) {
    __m128i q = _mm_loadu_si128((const __m128i *)(p + 16 * i));
    return v_low_nibbles(_mm256_set_m128i(_mm_srli_epi16(q, 4), q));
}
/* Nibbles of 16 bytes, of each eight of them the low ones, then the high ones. */
V_INLINE vi v_nibbles_of8(const uint8_t *p) {
    vi q = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
    q = _mm256_permute4x64_epi64(q, 0x50);
    return v_low_nibbles(_mm256_srlv_epi64(q, _mm256_setr_epi64x(0, 4, 0, 4)));
}
V_INLINE vi v_pairs_of32(const uint8_t *p, int i, int up) {
    const int down = i % 4 * 2 - up;
    vi q = v_load(p + 32 * (i / 4));
    q = down >= 0 ? _mm256_srli_epi16(q, down) : _mm256_slli_epi16(q, -down);
    return _mm256_and_si256(q, _mm256_set1_epi8((char)(3 << up)));
}
/* Pair j of the bits of each byte. 16 wherever bit j of 16 bytes is set, then wherever bit j + 4 is. */
V_INLINE vi v_pairs_of_bits(vi a, int j) {
    return _mm256_and_si256(_mm256_srli_epi16(a, 2 * j), _mm256_set1_epi8(3));
}
V_INLINE vi v_fifth_bits(const uint8_t *p, int j) {
    vi a = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    a = _mm256_srlv_epi32(a, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return _mm256_and_si256(_mm256_slli_epi16(a, 4 - j), _mm256_set1_epi8(16));
}
/* `value` wherever the next of 32 bits is set; the next 32 pairs of bits. */
V_INLINE vi v_bits_in_order(const uint8_t *p, int value) {
    const uint32_t bits = mmrt_load_u32(p);
#ifdef __AVX512BW__
    return _mm256_maskz_mov_epi8(_cvtu32_mask32(bits), _mm256_set1_epi8((char)value));
#else
    const vi byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const vi bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    vi picked = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(picked, bit), _mm256_set1_epi8((char)value));
#endif
}
V_INLINE vi v_pairs_in_order(const uint8_t *p) {
    vi a = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    a = v_or(a, _mm256_slli_epi32(a, 12)); /* the third pair to the third byte, */
    a = v_or(a, _mm256_slli_epi32(a, 6));  /* the second and the fourth to theirs */
    return _mm256_and_si256(a, _mm256_set1_epi8(3));
}
V_INLINE vi v_bits_of32(const uint8_t *p, int i, int value) {
    const vi bit = _mm256_set1_epi8((char)(1 << i));
#ifdef __AVX512BW__
    return _mm256_maskz_mov_epi8(_mm256_test_epi8_mask(v_load(p), bit),
                                 _mm256_set1_epi8((char)value));
#else
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v_load(p), bit), bit),
                            _mm256_set1_epi8((char)value));
#endif
}

/* The lower halves of a and b, and the upper ones. Planes of weights, joined in order. */
V_INLINE vi v_lower_halves(vi a, vi b) { return _mm256_permute2x128_si256(a, b, 0x20); }
V_INLINE vi v_upper_halves(vi a, vi b) { return _mm256_permute2x128_si256(a, b, 0x31); }
V_INLINE void v_join16(vi low, vi high, uint8_t *out) {
    v_store(out, v_lower_halves(low, high));
    v_store(out + 32, v_upper_halves(low, high));
}

/* Each lane: acc + the sum of four products, weights unsigned (below 128) or signed. */
V_INLINE vi v_dot_unsigned(vi acc, vi w, vi x) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(acc, w, x);
#else
    __m256i pairs = _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
V_INLINE vi v_dot_signed(vi acc, vi w, vi x) {
    return v_dot_unsigned(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

/* Each lane: the sum of two times four products, weights unsigned (below 64), or signed and with
 * v_add_start after a sum of lanes. */
V_INLINE vi v_dot2_unsigned(vi w0, vi x0, vi w1, vi x1) {
#ifdef __AVX512VNNI__
    return v_dot_unsigned(v_dot_unsigned(_mm256_setzero_si256(), w0, x0), w1, x1);
#else
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}
V_INLINE vi v_dot2_signed(vi w0, vi x0, vi w1, vi x1) {
#ifdef __AVX512VNNI__
    const vi by = _mm256_set1_epi8(-128); /* weights plus 128 */
    return v_dot2_unsigned(_mm256_xor_si256(w0, by), x0, _mm256_xor_si256(w1, by), x1);
#else
    return v_dot_signed(v_dot_signed(_mm256_setzero_si256(), w0, x0), w1, x1);
#endif
}
V_INLINE vi v_add_start(vi sums, const int32_t *start) {
#ifdef __AVX512VNNI__
    return _mm256_add_epi32(sums, v_load(start));
#else
    (void)start;
    return sums;
#endif
}
/* The sums of four lanes: of the lower halves of a, then of the upper ones. */
V_INLINE vi v_sum_fours(const vi a[4]) {
    vi b = _mm256_add_epi32(_mm256_unpacklo_epi32(a[0], a[1]), _mm256_unpackhi_epi32(a[0], a[1]));
    vi c = _mm256_add_epi32(_mm256_unpacklo_epi32(a[2], a[3]), _mm256_unpackhi_epi32(a[2], a[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(b, c), _mm256_unpackhi_epi64(b, c));
}

/* Products with four activations in every lane, for weights as panels hold them. */
V_INLINE vi v_four(const int8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
V_INLINE vi v_dot_panel(vi acc, vi w, vi x) { return v_dot_signed(acc, w, x); }
V_INLINE vi v_dot_start(const int32_t *start) {
    (void)start;
    return _mm256_setzero_si256();
}
/* The start is for a bias of 128; this one is a power of 2. */
V_INLINE vi v_bias_start(const int32_t *start, int bias) {
    return _mm256_srai_epi32(_mm256_set1_epi32(*start), __builtin_ctz(128 / (unsigned)bias));
}

/* ---- floats ---- */

V_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
V_INLINE vf v_set(float value) { return _mm256_set1_ps(value); }
V_INLINE vf v_loadf(const float *p) { return _mm256_loadu_ps(p); }
V_INLINE void v_storef(float *p, vf a) { _mm256_storeu_ps(p, a); }
V_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
V_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
V_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
V_INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
V_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
V_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
V_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); } /* a * b + c */
V_INLINE vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT); }
V_INLINE vf v_to_float(vi a) { return _mm256_cvtepi32_ps(a); }
V_INLINE vf v_as_float(vi a) { return _mm256_castsi256_ps(a); }
V_INLINE float v_sum(vf a) { return v8_sum(a); }
V_INLINE float v_largest(vf a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
V_INLINE vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

/* a * 2^n for whole n from -126 to 127. */
V_INLINE vf v_scale_by_power(vf a, vf n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

/* Lane i of a where lane i of `index` is below `limit`, else `other`. */
V_INLINE vf v_where_below(vf index, float limit, vf a, vf other) {
    return _mm256_blendv_ps(other, a, _mm256_cmp_ps(index, v_set(limit), _CMP_LT_OQ));
}
V_INLINE vf v_iota(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

V_INLINE vf v_load_f16(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
V_INLINE vf v_load_i8(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
V_INLINE vf v_load_bf16(const void *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* The halves at the start of eight blocks; those and the next; or bytes e as 2^(e - 128). */
V_INLINE vf v_eight_halves(const uint8_t *blocks, size_t bytes) {
    __m128i a = _mm_cvtsi32_si128(mmrt_load_u16(blocks));
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + bytes), 1);
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + 2 * bytes), 2);
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + 3 * bytes), 3);
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + 4 * bytes), 4);
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + 5 * bytes), 5);
    a = _mm_insert_epi16(a, mmrt_load_u16(blocks + 6 * bytes), 6);
    return _mm256_cvtph_ps(_mm_insert_epi16(a, mmrt_load_u16(blocks + 7 * bytes), 7));
}
V_INLINE vf v_four_half_pairs(const uint8_t *a, size_t bytes) { /* of blocks 0, 1, 4 and 5 */
    return _mm256_cvtph_ps(_mm_setr_epi32((int)mmrt_load_u32(a), (int)mmrt_load_u32(a + bytes),
                                          (int)mmrt_load_u32(a + 4 * bytes), (int)mmrt_load_u32(a + 5 * bytes)));
}
V_INLINE void v_eight_half_pairs(const uint8_t *blocks, size_t bytes, vf *first, vf *second) {
    vf a = v_four_half_pairs(blocks, bytes), b = v_four_half_pairs(blocks + 2 * bytes, bytes);
    *first = _mm256_shuffle_ps(a, b, 0x88);
    *second = _mm256_shuffle_ps(a, b, 0xdd);
}
V_INLINE vf v_eight_powers(const uint8_t *blocks, size_t bytes) {
    uint64_t all = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        all |= (uint64_t)blocks[(size_t)i * bytes] << (8 * i);
    const __m256i e = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)all)), two = _mm256_set1_epi32(2);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(two, e)));
}

/* ---- 16 floats: scales of a block of 256 ---- */

typedef struct {
    __m256 part[2];
} v16;

#define V16_EACH(first, second) ((v16){{(first), (second)}})
V_INLINE v16 v16_zero(void) { return V16_EACH(v_zero(), v_zero()); }
V_INLINE v16 v16_load(const float *p) { return V16_EACH(v_loadf(p), v_loadf(p + 8)); }
V_INLINE v16 v16_mul(v16 a, v16 b) {
    return V16_EACH(v_mul(a.part[0], b.part[0]), v_mul(a.part[1], b.part[1]));
}
V_INLINE v16 v16_add(v16 a, v16 b) {
    return V16_EACH(v_add(a.part[0], b.part[0]), v_add(a.part[1], b.part[1]));
}
V_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16_EACH(v_fma(a.part[0], b.part[0], c.part[0]), v_fma(a.part[1], b.part[1], c.part[1]));
}
V_INLINE void v16_store(float *p, v16 a) {
    v_storef(p, a.part[0]);
    v_storef(p + 8, a.part[1]);
}
V_INLINE v16 v16_from_u8(v4 bytes) {
    return V16_EACH(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))));
}
V_INLINE v16 v16_from_i8(v4 bytes) {
    return V16_EACH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))));
}
V_INLINE v16 v16_from_ue4m3(v4 bytes) {
    const __m256i halves = v4_ue4m3_halves(bytes);
    const vf factor = v_set(256);
    return V16_EACH(v_mul(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), factor),
                    v_mul(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), factor));
}
V_INLINE v16 v16_set(float value) { return V16_EACH(v_set(value), v_set(value)); }
/* The half at p in all; or that and the next, eight times each. */
V_INLINE v16 v16_from_f16(const void *p) {
    vf half = _mm256_cvtph_ps(_mm_set1_epi16((short)mmrt_load_u16(p)));
    return V16_EACH(half, half);
}
V_INLINE v16 v16_from_two_f16(const uint8_t *p) {
    return V16_EACH(_mm256_cvtph_ps(_mm_set1_epi16((short)mmrt_load_u16(p))),
                    _mm256_cvtph_ps(_mm_set1_epi16((short)mmrt_load_u16(p + 2))));
}
/* The eight at a, then the eight at b; the eight at p twice each. */
V_INLINE v16 v16_join8(const float *a, const float *b) { return V16_EACH(v_loadf(a), v_loadf(b)); }
V_INLINE v16 v16_twice8(const float *p) {
    const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    return V16_EACH(_mm256_permutevar8x32_ps(v_loadf(p), low),
                    _mm256_permutevar8x32_ps(v_loadf(p), high));
}
/* For the weights from 32 i on: the scale of each lane, whose sub-blocks are 32 or 16 weights. */
V_INLINE vf v16_spread32(v16 a, int i) {
    return _mm256_permutevar8x32_ps(a.part[0], _mm256_set1_epi32(i));
}
V_INLINE vf v16_spread16(v16 a, int i) {
    const int lane = 2 * i % 8;
    const __m256i lanes = _mm256_setr_epi32(lane, lane, lane, lane, lane + 1, lane + 1, lane + 1, lane + 1);
    return _mm256_permutevar8x32_ps(a.part[i / 4], lanes);
}
V_INLINE vf v16_lower(v16 a) { return a.part[0]; }
/* What is in the upper eight, or in all, in any lanes. */
V_INLINE vf v16_upper(v16 a) { return a.part[1]; }
V_INLINE vf v16_sum_halves(v16 a) { return v_add(a.part[0], a.part[1]); }

/* 8 x 8 dwords, transposed in place. */
V_INLINE void v_transpose(vi r[V_FLOATS]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++)
        r[i] = t[i];
}

/* See panel.inc. Of unsigned weights below 32 four pairs of products, and of those below 64 two, are added
 * as words of 16 bits. */
V_INLINE void v_panel_order(vi r[V_FLOATS]) { v_transpose(r); }
V_INLINE void v_dot_panel_columns(const int n, const int steps, const int limit, const uint8_t *p,
                                  const int8_t *q, size_t stride, vi dot[]) {
    const int together = limit ? 128 / limit : 1;
#pragma GCC unroll 8
    for (int i = 0; i < steps; i += together) {
        vi pairs[V_SLICE_16];
#pragma GCC unroll 4
        for (int j = 0; j < together; j++) {
            const vi w = v_load(p + (i + j) * V_BYTES);
#pragma GCC unroll 4
            for (int c = 0; c < n; c++) {
                const vi x = v_four(q + c * stride + 4 * (i + j));
                if (!limit)
                    dot[c] = v_dot_panel(dot[c], w, x);
                else
                    pairs[c] = j ? _mm256_add_epi16(pairs[c], _mm256_maddubs_epi16(w, x))
                                 : _mm256_maddubs_epi16(w, x);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; limit && c < n; c++)
            dot[c] = _mm256_add_epi32(dot[c], _mm256_madd_epi16(pairs[c], _mm256_set1_epi16(1)));
    }
}

/* The bytes of 32 floats rounded to nearest even, for values from -127 to 127. */
V_INLINE void v_store_bytes32(int8_t *p, const vf a[32 / V_FLOATS]) {
    __m256i words[2];
    for (int i = 0; i < 2; i++)
        words[i] =
            _mm256_packs_epi32(_mm256_cvtps_epi32(a[2 * i]), _mm256_cvtps_epi32(a[2 * i + 1]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packs works by halves */
    v_store(p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order));
}
/* Of 32 bytes every fourth, 64 bytes apart: from the first on, the second, the third, the fourth. */
V_INLINE void v_store_strided(int8_t *out, const int8_t *p) {
    const vi order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    vi a = _mm256_shuffle_epi8(v_load(p), order);
    a = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m128i first = _mm256_castsi256_si128(a), second = _mm256_extracti128_si256(a, 1);
    _mm_storel_epi64((__m128i *)out, first);
    _mm_storeh_pd((double *)(void *)(out + 64), _mm_castsi128_pd(first));
    _mm_storel_epi64((__m128i *)(out + 128), second);
    _mm_storeh_pd((double *)(void *)(out + 192), _mm_castsi128_pd(second));
}
/* The sum of 16 signed bytes. */
V_INLINE int v_sum_bytes16(const int8_t *p) {
    __m256i pairs = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)),
                                      _mm256_set1_epi16(1));
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}
