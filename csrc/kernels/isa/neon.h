/* The vector primitives of body/ in NEON with its dot products: 8 floats, 32 bytes, 2 blocks of 32,
 * as pairs of 128-bit vectors, of which processors work on two to four at once. Where there are
 * matrix products of bytes, panels use those.
 *
 *             latency/throughput in cycles    Neoverse N1    Neoverse N2
 *   sdot                                      2 / 0.5        3 / 0.5     16 multiply-adds
 *   smmla                                                    3 / 0.5     32 multiply-adds
 *   fmla                                      4 / 0.5        4 / 0.5     4 multiply-adds
 * Products are of signed bytes: weights have their bias taken off, or are below 128.
 */
#ifndef MMRT_KERNELS_NEON_H
#define MMRT_KERNELS_NEON_H

#include <arm_neon.h>
#include <stdbool.h>

#include "quant/f16.h"

#define V_INLINE static inline __attribute__((always_inline))

/* One line for what is one instruction, or one for each half. */
/* clang-format off */

#define V_FLOATS     8
#define V_BYTES      32
#define V_BLOCKS     2 /* of 32 weights, whose low and high nibbles fill one vector each */
#define V_SHIFT_128  0 /* panels hold signed weights */
enum { V_REGISTERS = 32 };
enum { V_TILE_ROWS = 2, V_TILE_COLUMNS = 4 }; /* of floats that are multiplied at once */
#define V_TILE_SLICES(X) X(4) X(2) X(1) /* columns of such tiles */
#define V_SLICES(X)  X(4) X(2) X(1) /* columns that a panel is multiplied with at once */
#define V_SLICE_16  4  /* of them at most where sub-blocks have 16 weights */

typedef struct { float32x4_t half[2]; } vf;
typedef struct { uint8x16_t half[2]; } vi;
typedef uint8x16_t v4; /* integer scales */

#define VF_EACH(first, second) ((vf){{(first), (second)}})
#define VI_EACH(first, second) ((vi){{(first), (second)}})

/* The compiler must have the value at hand, and knows nothing of what it is after that. */
V_INLINE void v_opaque(vf *a) { __asm__ volatile("" : "+w"(a->half[0]), "+w"(a->half[1])); }
V_INLINE void v_opaque_bytes(vi *a) { __asm__ volatile("" : "+w"(a->half[0]), "+w"(a->half[1])); }

/* ---- bytes ---- */

V_INLINE vi v_load(const void *p) {
    return VI_EACH(vld1q_u8((const uint8_t *)p), vld1q_u8((const uint8_t *)p + 16));
}
V_INLINE void v_store(void *p, vi a) {
    vst1q_u8((uint8_t *)p, a.half[0]);
    vst1q_u8((uint8_t *)p + 16, a.half[1]);
}
V_INLINE vi v_set_byte(int value) {
    return VI_EACH(vdupq_n_u8((uint8_t)value), vdupq_n_u8((uint8_t)value));
}
V_INLINE vi v_zero_bytes(void) { return v_set_byte(0); }
V_INLINE vi v_sub_bytes(vi a, vi b) {
    return VI_EACH(vsubq_u8(a.half[0], b.half[0]), vsubq_u8(a.half[1], b.half[1]));
}
V_INLINE vi v_or(vi a, vi b) {
    return VI_EACH(vorrq_u8(a.half[0], b.half[0]), vorrq_u8(a.half[1], b.half[1]));
}
V_INLINE vi v_and(vi a, vi b) {
    return VI_EACH(vandq_u8(a.half[0], b.half[0]), vandq_u8(a.half[1], b.half[1]));
}
V_INLINE vi v_low_nibbles(vi a) { return v_and(a, v_set_byte(15)); }
V_INLINE vi v_high_nibbles(vi a) {
    return VI_EACH(vshrq_n_u8(a.half[0], 4), vshrq_n_u8(a.half[1], 4));
}

/* 8 a, of bytes from -1 to 1. */
V_INLINE vi v_times8(vi a) { return VI_EACH(vshlq_n_u8(a.half[0], 3), vshlq_n_u8(a.half[1], 3)); }

/* Eight bytes, or four, from each place. */
V_INLINE vi v_fetch8(const uint64_t *const p[4]) {
    return VI_EACH(vreinterpretq_u8_u64(vcombine_u64(vld1_u64(p[0]), vld1_u64(p[1]))),
                   vreinterpretq_u8_u64(vcombine_u64(vld1_u64(p[2]), vld1_u64(p[3]))));
}
V_INLINE vi v_fetch4(const uint32_t *const p[8]) {
    return VI_EACH(vreinterpretq_u8_u32((uint32x4_t){*p[0], *p[1], *p[2], *p[3]}),
                   vreinterpretq_u8_u32((uint32x4_t){*p[4], *p[5], *p[6], *p[7]}));
}

V_INLINE vi v_join4(const v4 parts[2]) { return VI_EACH(parts[0], parts[1]); }

/* 255 wherever the bit of a byte is set, of 16 bits in two bytes. */
V_INLINE uint8x16_t v_mask_of_bits(uint8x8_t first, uint8x8_t second) {
    const uint8x8_t bit = vcreate_u8(0x8040201008040201);
    return vtstq_u8(vcombine_u8(first, second), vcombine_u8(bit, bit));
}

/* -a wherever the bit of a byte is set. */
V_INLINE uint8x16_t v_negate_half(uint8x16_t a, uint32_t bits) {
    uint8x16_t minus = v_mask_of_bits(vdup_n_u8((uint8_t)bits), vdup_n_u8((uint8_t)(bits >> 8)));
    return vsubq_u8(veorq_u8(a, minus), minus);
}
V_INLINE vi v_negate(vi a, const uint32_t *bits) {
    return VI_EACH(v_negate_half(a.half[0], *bits), v_negate_half(a.half[1], *bits >> 16));
}

/* table[a], 16 signed bytes by numbers from 0 to 15. */
V_INLINE vi v_look_up(const int8_t *table, vi a) {
    const uint8x16_t values = vreinterpretq_u8_s8(vld1q_s8(table));
    return VI_EACH(vqtbl1q_u8(values, a.half[0]), vqtbl1q_u8(values, a.half[1]));
}

/* 16 bytes from `offset` on in each of two blocks. */
V_INLINE vi v_gather16(const uint8_t *blocks, size_t bytes, size_t offset) {
    return VI_EACH(vld1q_u8(blocks + offset), vld1q_u8(blocks + bytes + offset));
}

/* 16 wherever one of the 16 bits at each place is set. */
V_INLINE vi v_bit4(const uint8_t *p, size_t apart) {
    vi mask = VI_EACH(v_mask_of_bits(vld1_dup_u8(p), vld1_dup_u8(p + 1)),
                      v_mask_of_bits(vld1_dup_u8(p + apart), vld1_dup_u8(p + apart + 1)));
    return v_and(mask, v_set_byte(16));
}

/* A digit of each byte, which holds five of base 3 as a fraction of 256: times 3^n it has digit n in
 * front: how many thirds of 256 there are. A power stands for two bytes. */
V_INLINE uint8x16_t v_digits_half(uint8x16_t a, const uint16_t *powers) {
    uint16x8_t power = vld1q_u16(powers);
    uint8x16_t front = vmulq_u8(a, vreinterpretq_u8_u16(vsliq_n_u16(power, power, 8)));
    return vsubq_u8(vdupq_n_u8(0), vaddq_u8(vcgeq_u8(front, vdupq_n_u8(86)), vcgeq_u8(front, vdupq_n_u8(171))));
}
V_INLINE vi v_digits_of_base3(vi a, const uint16_t *powers) {
    return VI_EACH(v_digits_half(a.half[0], powers), v_digits_half(a.half[1], powers + 8));
}

/* Of such bytes less 128: the first digit; three times them, which have the next in front; 16 at p,
 * then three times them; the lower half of a, then four at p times 1, 3, 9 and 27. What is less by
 * 128 is so after multiplication with an odd number. */
V_INLINE uint8x16_t v_first_digit_half(uint8x16_t a) {
    const int8x16_t s = vreinterpretq_s8_u8(a);
    return vsubq_u8(vdupq_n_u8(0), vaddq_u8(vcgtq_s8(s, vdupq_n_s8(85 - 128)), vcgtq_s8(s, vdupq_n_s8(170 - 128))));
}
V_INLINE vi v_first_digit(vi a) { return VI_EACH(v_first_digit_half(a.half[0]), v_first_digit_half(a.half[1])); }
V_INLINE uint8x16_t v_times3_half(uint8x16_t a) { return vmulq_u8(a, vdupq_n_u8(3)); }
V_INLINE vi v_times3(vi a) { return VI_EACH(v_times3_half(a.half[0]), v_times3_half(a.half[1])); }
V_INLINE vi v_then_times3(const uint8_t *p) {
    const uint8x16_t a = veorq_u8(vld1q_u8(p), vdupq_n_u8(128));
    return VI_EACH(a, v_times3_half(a));
}
V_INLINE vi v_lower_then_powers(vi a, const uint8_t *p) {
    const uint32x4_t powers = {0x01010101, 0x03030303, 0x09090909, 0x1b1b1b1b};
    const uint8x16_t four = vreinterpretq_u8_u32(vdupq_n_u32(mmrt_load_u32(p) ^ 0x80808080));
    return VI_EACH(a.half[0], vmulq_u8(four, vreinterpretq_u8_u32(powers)));
}

/* Of types with 256 weights, 32 in order from 32 i on: nibbles (of 32 bytes, or 16, at p the low ones,
 * then the high ones); pairs of bits (bit pairs of 32 bytes by turns), shifted up by `up`; and `value`
 * wherever bit i of 32 bytes is set. */
V_INLINE vi v_nibbles_of32(const uint8_t *p, int i) {
    vi q = v_load(p + 32 * (i / 2));
    return i % 2 ? v_high_nibbles(q) : v_low_nibbles(q);
}
V_INLINE vi v_nibbles_of16(const uint8_t *p, int i) {
    uint8x16_t q = vld1q_u8(p + 16 * i);
    return VI_EACH(vandq_u8(q, vdupq_n_u8(15)), vshrq_n_u8(q, 4));
}
/* Nibbles of 16 bytes, of each eight of them the low ones, then the high ones. */
V_INLINE vi v_nibbles_of8(const uint8_t *p) {
    uint8x16_t q = vld1q_u8(p);
    uint64x2_t low = vreinterpretq_u64_u8(vandq_u8(q, vdupq_n_u8(15)));
    uint64x2_t high = vreinterpretq_u64_u8(vshrq_n_u8(q, 4));
    return VI_EACH(vreinterpretq_u8_u64(vzip1q_u64(low, high)), vreinterpretq_u8_u64(vzip2q_u64(low, high)));
}
V_INLINE vi v_pairs_of32(const uint8_t *p, int i, int up) {
    const int down = i % 4 * 2 - up;
    vi q = v_load(p + 32 * (i / 4));
    q = down >= 0 ? VI_EACH(q.half[0] >> down, q.half[1] >> down)
                  : VI_EACH(q.half[0] << -down, q.half[1] << -down);
    return v_and(q, v_set_byte(3 << up));
}
/* Pair j of the bits of each byte. 16 wherever bit j of 16 bytes is set, then wherever bit j + 4 is. */
V_INLINE vi v_pairs_of_bits(vi a, int j) {
    return v_and(VI_EACH(a.half[0] >> 2 * j, a.half[1] >> 2 * j), v_set_byte(3));
}
V_INLINE vi v_fifth_bits(const uint8_t *p, int j) {
    const uint8x16_t bits = vld1q_u8(p);
    return v_and(VI_EACH(bits << (4 - j), bits >> j), v_set_byte(16));
}
/* `value` wherever the next of 32 bits is set; the next 32 pairs of bits. */
V_INLINE vi v_bits_in_order(const uint8_t *p, int value) {
    vi mask = VI_EACH(v_mask_of_bits(vld1_dup_u8(p), vld1_dup_u8(p + 1)),
                      v_mask_of_bits(vld1_dup_u8(p + 2), vld1_dup_u8(p + 3)));
    return v_and(mask, v_set_byte(value));
}
V_INLINE uint8x16_t v_pairs_of_4(uint32_t bytes) {
    const uint8x16_t byte = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const int8x16_t down = {0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6};
    uint8x16_t each = vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(bytes)), byte);
    return vandq_u8(vshlq_u8(each, down), vdupq_n_u8(3));
}
V_INLINE vi v_pairs_in_order(const uint8_t *p) {
    return VI_EACH(v_pairs_of_4(mmrt_load_u32(p)), v_pairs_of_4(mmrt_load_u32(p + 4)));
}
V_INLINE vi v_bits_of32(const uint8_t *p, int i, int value) {
    const uint8x16_t bit = vdupq_n_u8((uint8_t)(1 << i));
    vi q = v_load(p);
    return v_and(VI_EACH(vtstq_u8(q.half[0], bit), vtstq_u8(q.half[1], bit)), v_set_byte(value));
}

V_INLINE uint8x16_t v_dot_half(uint8x16_t acc, uint8x16_t w, uint8x16_t x) {
    return vreinterpretq_u8_s32(
        vdotq_s32(vreinterpretq_s32_u8(acc), vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x)));
}

/* The lower halves of a and b, and the upper ones. Planes of weights, joined in order. */
V_INLINE vi v_lower_halves(vi a, vi b) { return VI_EACH(a.half[0], b.half[0]); }
V_INLINE vi v_upper_halves(vi a, vi b) { return VI_EACH(a.half[1], b.half[1]); }
V_INLINE void v_join16(vi low, vi high, uint8_t *out) {
    v_store(out, v_lower_halves(low, high));
    v_store(out + 32, v_upper_halves(low, high));
}

/* Each lane: acc + the sum of four products, weights unsigned (below 128) or signed. */
V_INLINE vi v_dot_signed(vi acc, vi w, vi x) {
    return VI_EACH(v_dot_half(acc.half[0], w.half[0], x.half[0]),
                   v_dot_half(acc.half[1], w.half[1], x.half[1]));
}
V_INLINE vi v_dot_unsigned(vi acc, vi w, vi x) { return v_dot_signed(acc, w, x); }

/* Each lane: the sum of two times four products, weights unsigned (below 64) or signed. */
V_INLINE vi v_dot2_signed(vi w0, vi x0, vi w1, vi x1) {
    return v_dot_signed(v_dot_signed(v_zero_bytes(), w0, x0), w1, x1);
}
V_INLINE vi v_dot2_unsigned(vi w0, vi x0, vi w1, vi x1) { return v_dot2_signed(w0, x0, w1, x1); }
V_INLINE vi v_add_start(vi sums, const int32_t *start) {
    (void)start;
    return sums;
}
/* The sums of four lanes: of the lower halves of a, then of the upper ones. */
V_INLINE uint8x16_t v_sum_pairs(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_s32(vpaddq_s32(vreinterpretq_s32_u8(a), vreinterpretq_s32_u8(b)));
}
V_INLINE uint8x16_t v_sum_fours_half(const vi a[4], int half) {
    return v_sum_pairs(v_sum_pairs(a[0].half[half], a[1].half[half]),
                       v_sum_pairs(a[2].half[half], a[3].half[half]));
}
V_INLINE vi v_sum_fours(const vi a[4]) {
    return VI_EACH(v_sum_fours_half(a, 0), v_sum_fours_half(a, 1));
}

V_INLINE vi v_four(const int8_t *p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const uint8x16_t all = vreinterpretq_u8_s32(vdupq_n_s32(four));
    return VI_EACH(all, all);
}
V_INLINE vi v_dot_panel(vi acc, vi w, vi x) { return v_dot_signed(acc, w, x); }
V_INLINE vi v_dot_start(const int32_t *start) {
    (void)start;
    return v_zero_bytes();
}

/* ---- floats ---- */

#define V_EACH1(op, a)       VF_EACH(op((a).half[0]), op((a).half[1]))
#define V_EACH2(op, a, b)    VF_EACH(op((a).half[0], (b).half[0]), op((a).half[1], (b).half[1]))

V_INLINE vf v_set(float value) { return VF_EACH(vdupq_n_f32(value), vdupq_n_f32(value)); }
V_INLINE vf v_zero(void) { return v_set(0); }
V_INLINE vf v_loadf(const float *p) { return VF_EACH(vld1q_f32(p), vld1q_f32(p + 4)); }
V_INLINE void v_storef(float *p, vf a) {
    vst1q_f32(p, a.half[0]);
    vst1q_f32(p + 4, a.half[1]);
}
V_INLINE vf v_add(vf a, vf b) { return V_EACH2(vaddq_f32, a, b); }
V_INLINE vf v_sub(vf a, vf b) { return V_EACH2(vsubq_f32, a, b); }
V_INLINE vf v_mul(vf a, vf b) { return V_EACH2(vmulq_f32, a, b); }
V_INLINE vf v_div(vf a, vf b) { return V_EACH2(vdivq_f32, a, b); }
V_INLINE vf v_max(vf a, vf b) { return V_EACH2(vmaxq_f32, a, b); } /* NaN if one is */
V_INLINE vf v_min(vf a, vf b) { return V_EACH2(vminq_f32, a, b); }
V_INLINE vf v_fma(vf a, vf b, vf c) { /* a * b + c */
    return VF_EACH(vfmaq_f32(c.half[0], a.half[0], b.half[0]),
                   vfmaq_f32(c.half[1], a.half[1], b.half[1]));
}
V_INLINE vf v_round(vf a) { return V_EACH1(vrndnq_f32, a); }
V_INLINE vf v_abs(vf a) { return V_EACH1(vabsq_f32, a); }
V_INLINE vf v_to_float(vi a) {
    return VF_EACH(vcvtq_f32_s32(vreinterpretq_s32_u8(a.half[0])),
                   vcvtq_f32_s32(vreinterpretq_s32_u8(a.half[1])));
}
V_INLINE vf v_as_float(vi a) {
    return VF_EACH(vreinterpretq_f32_u8(a.half[0]), vreinterpretq_f32_u8(a.half[1]));
}
V_INLINE float v_sum(vf a) { return vaddvq_f32(vaddq_f32(a.half[0], a.half[1])); }
V_INLINE float v_largest(vf a) { return vmaxvq_f32(vmaxq_f32(a.half[0], a.half[1])); }

/* a * 2^n for whole n from -126 to 127. */
V_INLINE float32x4_t v_scale_half(float32x4_t a, float32x4_t n) {
    int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
V_INLINE vf v_scale_by_power(vf a, vf n) { return V_EACH2(v_scale_half, a, n); }

/* Lane i of a where lane i of `index` is below `limit`, else `other`. */
V_INLINE vf v_where_below(vf index, float limit, vf a, vf other) {
    const float32x4_t below = vdupq_n_f32(limit);
    return VF_EACH(vbslq_f32(vcltq_f32(index.half[0], below), a.half[0], other.half[0]),
                   vbslq_f32(vcltq_f32(index.half[1], below), a.half[1], other.half[1]));
}
V_INLINE vf v_iota(void) {
    return VF_EACH(((float32x4_t){0, 1, 2, 3}), ((float32x4_t){4, 5, 6, 7}));
}

V_INLINE float v_f16_at(const void *p) {
    __fp16 value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}
V_INLINE vf v_load_f16(const void *p) {
    float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8((const uint8_t *)p));
    return VF_EACH(vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves));
}
V_INLINE vf v_load_i8(const void *p) {
    const int16x8_t wide = vmovl_s8(vld1_s8((const int8_t *)p));
    return VF_EACH(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))),
                   vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))));
}
V_INLINE vf v_load_bf16(const void *p) {
    uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)p));
    return VF_EACH(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
                   vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16)));
}

/* Two floats, each in four lanes. */
V_INLINE vf v_two(float a, float b) { return VF_EACH(vdupq_n_f32(a), vdupq_n_f32(b)); }
/* The halves at the start of eight blocks; those and the next; or bytes e as 2^(e - 128). */
V_INLINE vf v_eight_halves(const uint8_t *blocks, size_t bytes) {
    uint16_t halves[8];
    for (int i = 0; i < 8; i++)
        halves[i] = mmrt_load_u16(blocks + (size_t)i * bytes);
    return v_load_f16(halves);
}
V_INLINE void v_eight_half_pairs(const uint8_t *blocks, size_t bytes, vf *first, vf *second) {
    *first = v_eight_halves(blocks, bytes);
    *second = v_eight_halves(blocks + 2, bytes);
}
V_INLINE vf v_eight_powers(const uint8_t *blocks, size_t bytes) {
    uint32_t bits[8];
    for (int i = 0; i < 8; i++) {
        const uint32_t e = blocks[(size_t)i * bytes];
        bits[i] = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    }
    return v_as_float(v_load(bits));
}

/* ---- 16 bytes, and 16 floats: scales of a block of 256 ---- */

V_INLINE v4 v4_load(const void *p) { return vld1q_u8((const uint8_t *)p); }
V_INLINE v4 v4_set(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return vreinterpretq_u8_u32((uint32x4_t){a, b, c, d});
}
V_INLINE v4 v4_low_nibbles(v4 a) { return vandq_u8(a, vdupq_n_u8(15)); }
V_INLINE v4 v4_high_nibbles(v4 a) { return vshrq_n_u8(a, 4); }

/* The nibbles of the first eight bytes in order, low ones first. */
V_INLINE v4 v4_nibbles_of8(v4 bytes) {
    return vzip1q_u8(v4_low_nibbles(bytes), v4_high_nibbles(bytes));
}
/* Three bits of each of eight words, from bit 12 on; of each of four, from bits 0, 3, 6 and 9 on. */
V_INLINE v4 v4_threes_at_12(const uint8_t *p) {
    uint16x8_t words = vshrq_n_u16(vreinterpretq_u16_u8(v4_load(p)), 12);
    return vcombine_u8(vand_u8(vmovn_u16(words), vdup_n_u8(7)), vdup_n_u8(0));
}
V_INLINE v4 v4_threes_of4(const uint8_t *p) {
    uint8_t threes[16];
    for (int i = 0; i < 16; i++)
        threes[i] = mmrt_load_u16(p + i / 4 * 2) >> (i % 4 * 3) & 7;
    return v4_load(threes);
}

/* Eight words of 32 bits: one after another, or every second from the second on. */
typedef struct { uint32_t word[8]; } w8;

V_INLINE w8 w8_load(const uint8_t *p) {
    w8 a;
    for (int i = 0; i < 8; i++)
        a.word[i] = mmrt_load_u32(p + 4 * i);
    return a;
}
V_INLINE w8 w8_load_odd(const uint8_t *p) {
    w8 a;
    for (int i = 0; i < 8; i++)
        a.word[i] = mmrt_load_u32(p + 8 * i + 4);
    return a;
}
/* Their upper four bits. */
V_INLINE v4 w8_top_nibbles(w8 a) {
    uint8_t tops[16] = {0};
    for (int i = 0; i < 8; i++)
        tops[i] = (uint8_t)(a.word[i] >> 28);
    return v4_load(tops);
}
/* The eighth sign of each byte: seven are stored, and an even number of the eight is set. */
V_INLINE uint32_t with_eighth_signs(uint32_t sevens) {
    uint32_t parity = sevens ^ (sevens >> 4 & 0x07070707);
    parity ^= parity >> 2 & 0x3f3f3f3f;
    parity ^= parity >> 1 & 0x7f7f7f7f;
    return sevens | (parity & 0x01010101) << 7;
}
/* The signs in the lower 28 bits of each, seven for eight elements. */
V_INLINE void w8_signs_of_28_bits(w8 a, uint32_t signs[8]) {
    for (int i = 0; i < 8; i++) {
        const uint32_t bits = a.word[i];
        signs[i] = with_eighth_signs((bits & 0x7f) | (bits << 1 & 0x7f00) | (bits << 2 & 0x7f0000) |
                                     (bits << 3 & 0x7f000000));
    }
}
/* 32 words of 16 bits: nine of an index, seven signs. */
V_INLINE void v_split_9_and_7(const uint8_t *p, uint16_t index[32], uint32_t signs[8]) {
    for (int i = 0; i < 8; i++) {
        uint32_t sevens = 0;
        for (int j = 0; j < 4; j++) {
            const uint32_t word = mmrt_load_u16(p + 8 * i + 2 * j);
            index[4 * i + j] = word & 0x1ff;
            sevens |= word >> 9 << (8 * j);
        }
        signs[i] = with_eighth_signs(sevens);
    }
}
/* 64 indices of 9 bits, or 32 of 10: the lower bytes at p, the bits above them in order in eight. */
V_INLINE void v_indices9(const uint8_t *p, const uint8_t *high, uint16_t index[64]) {
    for (int i = 0; i < 64; i++)
        index[i] = (uint16_t)((high[i / 8] >> (i % 8) & 1) << 8 | p[i]);
}
V_INLINE void v_indices10(const uint8_t *p, const uint8_t *high, uint16_t index[32]) {
    for (int i = 0; i < 32; i++)
        index[i] = (uint16_t)((high[i / 4] >> (i % 4 * 2) & 3) << 8 | p[i]);
}
/* 32 indices of 11 bits: the upper three of four are in a word, from bits 0, 3, 6 and 9 on, and a sign
 * for all 32 elements is in bit 15; or they are from bits 0, 4, 8 and 12 on, each under a sign. */
V_INLINE void v_indices11(const uint8_t *p, const uint8_t *high, uint16_t index[32], uint32_t signs[8]) {
    for (int i = 0; i < 32; i++)
        index[i] = (uint16_t)((mmrt_load_u16(high + i / 4 * 2) >> (i % 4 * 3) & 7) << 8 | p[i]);
    for (int i = 0; i < 8; i++)
        signs[i] = high[2 * i + 1] & 0x80 ? 0xffffffff : 0;
}
V_INLINE void v_indices11_signed(const uint8_t *p, const uint8_t *high, uint16_t index[32], uint32_t signs[8]) {
    for (int i = 0; i < 8; i++) {
        const uint32_t word = mmrt_load_u16(high + 2 * i);
        signs[i] = 0;
        for (int j = 0; j < 4; j++) {
            index[4 * i + j] = (uint16_t)((word >> (4 * j) & 7) << 8 | p[4 * i + j]);
            signs[i] |= (word >> (4 * j + 3) & 1) * 0xffu << (8 * j);
        }
    }
}
/* The 8 scales and 8 minima of a Q4_K or Q5_K block: words of bytes, once the upper two bits of the
 * second and the last four have been fetched from above the first and the third. */
V_INLINE v4 v4_q4_k_scales(const uint8_t *block) {
    const uint8x16_t order = {4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15};
    const uint8x16_t above = {255, 255, 255, 255, 4, 5, 6, 7, 255, 255, 255, 255, 8, 9, 10, 11};
    const uint32x4_t mask = {0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f};
    const int32x4_t down = {0, 0, 0, -4};
    uint8x16_t words = v4_load(block);
    uint32x4_t low = vshlq_u32(vreinterpretq_u32_u8(vqtbl1q_u8(words, order)), down);
    uint8x16_t high = vandq_u8(vshrq_n_u8(vqtbl1q_u8(words, above), 2), vdupq_n_u8(0x30));
    return vorrq_u8(vreinterpretq_u8_u32(vandq_u32(low, mask)), high);
}
/* The 8 scales of an IQ4_XS block: nibbles of four bytes, under pairs of bits of a word. */
V_INLINE v4 v4_iq4_xs_scales(const uint8_t *block) {
    const int16x8_t to_pair = {0, -2, -4, -6, -8, -10, -12, -14};
    uint16x8_t pairs = vshlq_u16(vdupq_n_u16(mmrt_load_u16(block + 2)), to_pair);
    uint16x8_t high = vshlq_n_u16(vandq_u16(pairs, vdupq_n_u16(3)), 4);
    uint8x8_t nibbles = vcreate_u8(mmrt_load_u32(block + 4));
    uint8x8_t low = vzip1_u8(vand_u8(nibbles, vdup_n_u8(15)), vshr_n_u8(nibbles, 4));
    return vcombine_u8(vorr_u8(low, vmovn_u16(high)), vdup_n_u8(0));
}

typedef struct { vf part[2]; } v16;

#define V16_EACH(first, second) ((v16){{(first), (second)}})
V_INLINE v16 v16_zero(void) { return V16_EACH(v_zero(), v_zero()); }
V_INLINE v16 v16_set(float value) { return V16_EACH(v_set(value), v_set(value)); }
V_INLINE v16 v16_load(const float *p) { return V16_EACH(v_loadf(p), v_loadf(p + 8)); }
V_INLINE void v16_store(float *p, v16 a) {
    v_storef(p, a.part[0]);
    v_storef(p + 8, a.part[1]);
}
V_INLINE v16 v16_mul(v16 a, v16 b) {
    return V16_EACH(v_mul(a.part[0], b.part[0]), v_mul(a.part[1], b.part[1]));
}
V_INLINE v16 v16_add(v16 a, v16 b) {
    return V16_EACH(v_add(a.part[0], b.part[0]), v_add(a.part[1], b.part[1]));
}
V_INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16_EACH(v_fma(a.part[0], b.part[0], c.part[0]), v_fma(a.part[1], b.part[1], c.part[1]));
}
V_INLINE vf v_from_u16(uint16x8_t a) {
    return VF_EACH(vcvtq_f32_u32(vmovl_u16(vget_low_u16(a))), vcvtq_f32_u32(vmovl_high_u16(a)));
}
V_INLINE vf v_from_s16(int16x8_t a) {
    return VF_EACH(vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), vcvtq_f32_s32(vmovl_high_s16(a)));
}
V_INLINE v16 v16_from_u8(v4 bytes) {
    return V16_EACH(v_from_u16(vmovl_u8(vget_low_u8(bytes))), v_from_u16(vmovl_high_u8(bytes)));
}
V_INLINE v16 v16_from_i8(v4 bytes) {
    int8x16_t a = vreinterpretq_s8_u8(bytes);
    return V16_EACH(v_from_s16(vmovl_s8(vget_low_s8(a))), v_from_s16(vmovl_high_s8(a)));
}
/* Sixteen E4M3 numbers without a sign: as halves they would be divided by 2^8. 0x7f is zero. */
V_INLINE v16 v16_from_ue4m3(v4 bytes) {
    const uint8x16_t most = vdupq_n_u8(0x7f);
    uint8x16_t bits = vandq_u8(bytes, most);
    bits = vbicq_u8(bits, vceqq_u8(bytes, most));
    uint16x8_t halves[2] = {vshll_n_u8(vget_low_u8(bits), 7), vshll_high_n_u8(bits, 7)};
    return v16_mul(V16_EACH(v_load_f16(&halves[0]), v_load_f16(&halves[1])), v16_set(256));
}
/* The half at p in all; or that and the next, eight times each. */
V_INLINE v16 v16_from_f16(const void *p) { return v16_set(v_f16_at(p)); }
V_INLINE v16 v16_from_two_f16(const uint8_t *p) {
    return V16_EACH(v_set(v_f16_at(p)), v_set(v_f16_at(p + 2)));
}
/* The eight at a, then the eight at b; the eight at p twice each. */
V_INLINE v16 v16_join8(const float *a, const float *b) { return V16_EACH(v_loadf(a), v_loadf(b)); }
V_INLINE vf v_twice4(const float *p) {
    float32x4_t a = vld1q_f32(p);
    return VF_EACH(vzip1q_f32(a, a), vzip2q_f32(a, a));
}
V_INLINE v16 v16_twice8(const float *p) { return V16_EACH(v_twice4(p), v_twice4(p + 4)); }
/* For the weights from 32 i on: the scale of each lane, whose sub-blocks are 32 or 16 weights. */
V_INLINE vf v16_spread32(v16 a, int i) { return v_set(a.part[0].half[i / 4][i % 4]); }
V_INLINE vf v16_spread16(v16 a, int i) {
    const float32x4_t four = a.part[i / 4].half[i / 2 % 2];
    return v_two(four[2 * i % 4], four[2 * i % 4 + 1]);
}
V_INLINE vf v16_lower(v16 a) { return a.part[0]; }
/* What is in the upper eight, or in all, in any lanes. */
V_INLINE vf v16_upper(v16 a) { return a.part[1]; }
V_INLINE vf v16_sum_halves(v16 a) { return v_add(a.part[0], a.part[1]); }

/* 8 x 8 dwords, transposed in place: quarters of 4 x 4. */
V_INLINE void v_transpose_quarter(const uint8x16_t in[4], uint8x16_t out[4]) {
    uint32x4_t r[4], t[4];
    for (int i = 0; i < 4; i++)
        r[i] = vreinterpretq_u32_u8(in[i]);
    for (int i = 0; i < 4; i += 2) {
        t[i] = vtrn1q_u32(r[i], r[i + 1]);
        t[i + 1] = vtrn2q_u32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        uint64x2_t a = vreinterpretq_u64_u32(t[i]), b = vreinterpretq_u64_u32(t[i + 2]);
        out[i] = vreinterpretq_u8_u64(vtrn1q_u64(a, b));
        out[i + 2] = vreinterpretq_u8_u64(vtrn2q_u64(a, b));
    }
}
V_INLINE void v_transpose(vi r[V_FLOATS]) {
    uint8x16_t in[4], out[2][2][4];
    for (int lower = 0; lower < 2; lower++)
        for (int right = 0; right < 2; right++) {
            for (int i = 0; i < 4; i++)
                in[i] = r[4 * lower + i].half[right];
            v_transpose_quarter(in, out[right][lower]);
        }
    for (int i = 0; i < 8; i++)
        r[i] = VI_EACH(out[i / 4][0][i % 4], out[i / 4][1][i % 4]);
}

#include "kernels/isa/neon_panels.h"

/* The bytes of 32 floats rounded to nearest even, for values from -127 to 127. */
V_INLINE int16x8_t v_round_to_words(vf a) {
    return vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a.half[0])), vmovn_s32(vcvtnq_s32_f32(a.half[1])));
}
V_INLINE void v_store_bytes32(int8_t *p, const vf a[32 / V_FLOATS]) {
    for (int i = 0; i < 4; i += 2)
        vst1q_s8(p + 8 * i, vcombine_s8(vmovn_s16(v_round_to_words(a[i])),
                                        vmovn_s16(v_round_to_words(a[i + 1]))));
}
/* The sum of 16 signed bytes. */
V_INLINE int v_sum_bytes16(const int8_t *p) { return vaddlvq_s8(vld1q_s8(p)); }

#endif
