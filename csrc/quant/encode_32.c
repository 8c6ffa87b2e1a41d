/* Encoders of the types with blocks of 32: Q4_0 to Q8_0, IQ4_NL. */
#include "blocks.h"
#include "f16.h"
#include "fit.h"
#include "grids.h"

/* Nibbles of element j and j + 16 to a byte; q is from 0 to 15, or more bits that are kept apart.
 */
static void store_nibbles(uint8_t qs[16], const int8_t q[32], int bias) {
    for (int j = 0; j < 16; j++)
        qs[j] = (uint8_t)(((q[j] + bias) & 15) | ((q[j + 16] + bias) & 15) << 4);
}

static void store_fifth_bits(uint8_t qh[4], const int8_t q[32], int bias) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; j++)
        bits |= (uint32_t)((q[j] + bias) >> 4 & 1) << j;
    memcpy(qh, &bits, sizeof bits);
}

/* The q of 32 elements under one scale, which is stored. */
static void encode_scaled(const float *x, int lo, int hi, uint8_t d[2], int8_t *q) {
    const float scale = mmrt_store_f16(d, mmrt_fit_scale(x, 32, lo, hi));
    mmrt_round_line(x, 32, (struct mmrt_line){scale, 0}, lo, hi, q);
}

static float mean_of(const float x[32]) {
    float sum = 0;
    for (int i = 0; i < 32; i++)
        sum += x[i];
    return sum / 32;
}

/* The same with a minimum. */
static void encode_line(const float *x, int hi, uint8_t d[2], uint8_t m[2], int8_t q[32]) {
    struct mmrt_line line = mmrt_fit_line(x, 32, hi, false);
    line.scale = mmrt_store_f16(d, line.scale);
    if (line.scale == 0) /* too small for binary16: a constant is left */
        line.min = -mean_of(x);
    line.min = -mmrt_store_f16(m, -line.min);
    mmrt_round_line(x, 32, line, 0, hi, q);
}

void mmrt_pack_Q4_0(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_q4_0 *block = blocks;
    int8_t q[32];
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32) {
        encode_scaled(values, -8, 7, block->d, q);
        store_nibbles(block->qs, q, 8);
    }
}

void mmrt_pack_Q4_1(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_q4_1 *block = blocks;
    int8_t q[32];
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32) {
        encode_line(values, 15, block->d, block->m, q);
        store_nibbles(block->qs, q, 0);
    }
}

void mmrt_pack_Q5_0(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_q5_0 *block = blocks;
    int8_t q[32];
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32) {
        encode_scaled(values, -16, 15, block->d, q);
        store_nibbles(block->qs, q, 16);
        store_fifth_bits(block->qh, q, 16);
    }
}

void mmrt_pack_Q5_1(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_q5_1 *block = blocks;
    int8_t q[32];
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32) {
        encode_line(values, 31, block->d, block->m, q);
        store_nibbles(block->qs, q, 0);
        store_fifth_bits(block->qh, q, 0);
    }
}

void mmrt_pack_Q8_0(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_q8_0 *block = blocks;
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32)
        encode_scaled(values, -127, 127, block->d, block->qs);
}

void mmrt_pack_IQ4_NL(const float *values, void *blocks, size_t n_elements) {
    struct mmrt_block_iq4_nl *block = blocks;
    int8_t q[32];
    for (size_t n = n_elements / 32; n > 0; n--, block++, values += 32) {
        const float d = mmrt_store_f16(block->d, mmrt_fit_values(values, 32, mmrt_values_iq4));
        mmrt_round_values(values, 32, d, mmrt_values_iq4, q);
        store_nibbles(block->qs, q, 0);
    }
}
