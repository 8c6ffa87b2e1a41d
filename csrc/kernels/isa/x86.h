/* What AVX2 and AVX-512 units share: eight floats at a time, and single halves. */
#ifndef MMRT_KERNELS_X86_H
#define MMRT_KERNELS_X86_H

#include <immintrin.h>

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

V_INLINE float v_f16_at(const void *p) { return _cvtsh_ss(mmrt_load_u16(p)); }

#endif
