/* Panels in NEON, and their products with n columns: as panel.inc says of those of other sets. Part
 * of neon.h. */
#ifndef MMRT_KERNELS_NEON_PANELS_H
#define MMRT_KERNELS_NEON_PANELS_H

/* clang-format off */

#define V_OWN_PANELS

#ifdef __ARM_FEATURE_MATMUL_INT8
/* Eight weights of rows 0 and 1, 2 and 3, 4 and 5, 6 and 7; then the next eight of them. */
V_INLINE void v_panel_order(vi r[V_FLOATS]) {
    vi out[V_FLOATS];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 2; j++) {
            const int pair = i % 2 * 4 + j * 2;
            uint64x2_t even = vreinterpretq_u64_u8(r[pair].half[i / 4]);
            uint64x2_t odd = vreinterpretq_u64_u8(r[pair + 1].half[i / 4]);
            out[i].half[j] = vreinterpretq_u8_u64(i / 2 % 2 ? vzip2q_u64(even, odd) : vzip1q_u64(even, odd));
        }
    for (int i = 0; i < 8; i++)
        r[i] = out[i];
}

#define V_MOST_PRODUCTS 64
V_INLINE uint8x16_t v_matrix_half(uint8x16_t acc, uint8x16_t w, uint8x16_t x) {
    return vreinterpretq_u8_s32(
        vmmlaq_s32(vreinterpretq_s32_u8(acc), vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x)));
}
V_INLINE vi v_most_products(vi acc, vi w, vi x) {
    return VI_EACH(v_matrix_half(acc.half[0], w.half[0], x.half[0]),
                   v_matrix_half(acc.half[1], w.half[1], x.half[1]));
}

/* Pairs of rows times pairs of columns, whose results are then sorted by columns. */
V_INLINE void v_dot_panel_columns(const int n, const int steps, const int limit, const uint8_t *p,
                                  const int8_t *q, size_t stride, vi dot[]) {
    (void)limit; /* weights are below 128 */
    uint8x16_t acc[2][4];
#pragma GCC unroll 2
    for (int c = 0; c < n; c += 2)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            acc[c / 2][i] = vdupq_n_u8(0);
#pragma GCC unroll 2
    for (int i = 0; i < steps; i += 4)
#pragma GCC unroll 2
        for (int c = 0; c < n; c += 2) {
            uint64x2_t even = vreinterpretq_u64_s8(vld1q_s8(q + c * stride + 4 * i)), odd = even;
            if (c + 1 < n)
                odd = vreinterpretq_u64_s8(vld1q_s8(q + (c + 1) * stride + 4 * i));
            const uint8x16_t x[2] = {vreinterpretq_u8_u64(vzip1q_u64(even, odd)),
                                     vreinterpretq_u8_u64(vzip2q_u64(even, odd))};
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++)
                acc[c / 2][j % 4] = v_matrix_half(
                    acc[c / 2][j % 4], vld1q_u8(p + i * V_BYTES + 16 * j), x[j / 4]);
        }
#pragma GCC unroll 4
    for (int c = 0; c < n; c++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            uint32x4_t a = vreinterpretq_u32_u8(acc[c / 2][2 * h]);
            uint32x4_t b = vreinterpretq_u32_u8(acc[c / 2][2 * h + 1]);
            dot[c].half[h] = vreinterpretq_u8_u32(c % 2 ? vuzp2q_u32(a, b) : vuzp1q_u32(a, b));
        }
}
#else
V_INLINE void v_panel_order(vi r[V_FLOATS]) { v_transpose(r); }

V_INLINE uint8x16_t v_dot_lane(uint8x16_t acc, uint8x16_t w, int8x16_t x, int lane) {
    int32x4_t a = vreinterpretq_s32_u8(acc);
    int8x16_t b = vreinterpretq_s8_u8(w);
    switch (lane) {
    case 0: return vreinterpretq_u8_s32(vdotq_laneq_s32(a, b, x, 0));
    case 1: return vreinterpretq_u8_s32(vdotq_laneq_s32(a, b, x, 1));
    case 2: return vreinterpretq_u8_s32(vdotq_laneq_s32(a, b, x, 2));
    default: return vreinterpretq_u8_s32(vdotq_laneq_s32(a, b, x, 3));
    }
}

V_INLINE void v_dot_panel_columns(const int n, const int steps, const int limit, const uint8_t *p,
                                  const int8_t *q, size_t stride, vi dot[]) {
    (void)limit; /* weights are below 128 */
#pragma GCC unroll 2
    for (int i = 0; i < steps; i += 4) {
        int8x16_t x[4];
#pragma GCC unroll 4
        for (int c = 0; c < n; c++)
            x[c] = vld1q_s8(q + c * stride + 4 * i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vi w = v_load(p + (i + j) * V_BYTES);
#pragma GCC unroll 4
            for (int c = 0; c < n; c++)
                dot[c] = VI_EACH(v_dot_lane(dot[c].half[0], w.half[0], x[c], j),
                                 v_dot_lane(dot[c].half[1], w.half[1], x[c], j));
        }
    }
}
#endif

#endif
