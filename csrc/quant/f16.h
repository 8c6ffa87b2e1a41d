/* IEEE 754 binary16 and bfloat16 to float32 and back, by bit arithmetic: the same on every machine.
 * Static inline only, so that a unit built for one instruction set lends its copy to no other. */
#ifndef MMRT_F16_H
#define MMRT_F16_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__)
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "blocks are read as little-endian");
#endif

static inline uint32_t mmrt_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float mmrt_f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact for every half; a NaN keeps its sign and payload. */
static inline float mmrt_f16_to_f32(uint16_t half) {
    const uint32_t sign = (uint32_t)(half >> 15) << 31;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    const uint32_t mantissa = half & 0x3ffu;

    if (exponent == 0) /* zero or subnormal: a multiple of 2^-24, and normal as a float32 */
        return mmrt_f32_from_bits(sign | mmrt_f32_bits((float)mantissa * 0x1p-24f));

    const uint32_t rebiased = exponent == 0x1f ? 0xff : exponent + (127 - 15);
    return mmrt_f32_from_bits(sign | rebiased << 23 | mantissa << 13);
}

/* Rounds to nearest, ties to even; from 65520 on the result is infinite. A NaN stays one: quiet,
 * with its sign and the top of its payload. */
static inline uint16_t mmrt_f32_to_f16(float value) {
    const uint32_t bits = mmrt_f32_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;

    if (magnitude > 0x7f800000u) { /* NaN */
        half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x47800000u) { /* 65536 and more */
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) { /* 2^-14 and more: normal; a carry may reach infinity */
        const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
        half = (rounded >> 13) - ((127u - 15u) << 10);
    } else { /* adding 0.5 makes the float's last bit 2^-24, which is the half's too */
        half = mmrt_f32_bits(mmrt_f32_from_bits(magnitude) + 0.5f) - 0x3f000000u;
    }
    return (uint16_t)(sign | half);
}

/* A bfloat16 is the upper half of a float32. */
static inline float mmrt_bf16_to_f32(uint16_t half) {
    return mmrt_f32_from_bits((uint32_t)half << 16);
}

/* Reads at any alignment. */
static inline uint16_t mmrt_load_u16(const void *bytes) {
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint32_t mmrt_load_u32(const void *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Stores a finite value as binary16, the largest if it is larger, and returns it as it can be read
 * again. */
static inline float mmrt_store_f16(void *bytes, float value) {
    const float size = value < 0 ? -value : value;
    const uint16_t half = mmrt_f32_to_f16(size <= 65504 ? value : value < 0 ? -65504 : 65504);
    memcpy(bytes, &half, sizeof half);
    return mmrt_f16_to_f32(half);
}

static inline float mmrt_load_f16(const void *bytes) {
    return mmrt_f16_to_f32(mmrt_load_u16(bytes));
}

#endif
