/* Encoders of the K types: blocks of 256 with scales of scales. */
#include "blocks.h"
#include "f16.h"
#include "fit_super.h"

/* Four planes of two bits, as Q2_K has them: element 128h + 32j + l is pair j of qs[32h + l]. */
static void store_pairs(uint8_t qs[64], const int8_t q[256], int bias, int shift) {
    memset(qs, 0, 64);
    for (int i = 0; i < 256; i++) {
        const int pair = (q[i] + bias) >> shift & 3;
        qs[i / 128 * 32 + i % 32] |= (uint8_t)(pair << (i / 32 % 4 * 2));
    }
}

/* Chunks of 64 elements, as Q4_K has them: low nibbles the first half, high ones the second. */
static void store_nibbles(uint8_t qs[128], const int8_t q[256]) {
    for (int i = 0; i < 128; i++) {
        const int8_t *chunk = q + i / 32 * 64 + i % 32;
        qs[i] = (uint8_t)((chunk[0] & 15) | (chunk[32] & 15) << 4);
    }
}

/* Eight s and eight m of six bits: see mmrt_q4_k_scale. */
static void store_scales(uint8_t scales[12], const int *s, const int *m) {
    for (int i = 0; i < 4; i++) {
        scales[i] = (uint8_t)(s[i] | s[i + 4] >> 4 << 6);
        scales[i + 4] = (uint8_t)(m[i] | m[i + 4] >> 4 << 6);
        scales[i + 8] = (uint8_t)((s[i + 4] & 15) | (m[i + 4] & 15) << 4);
    }
}

void mmrt_pack_Q2_K(const float *values, void *blocks, size_t n_elements) {
    static const struct mmrt_super_type type = {16, 0, 3, 0, 15, 15};
    struct mmrt_block_q2_k *block = blocks;
    struct mmrt_super fit;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        mmrt_fit_super(values, &type, &fit);
        mmrt_store_f16(block->d, fit.d);
        mmrt_store_f16(block->dmin, fit.dmin);
        for (int i = 0; i < 16; i++)
            block->scales[i] = (uint8_t)(fit.s[i] | fit.m[i] << 4);
        store_pairs(block->qs, fit.q, 0, 0);
    }
}

void mmrt_pack_Q3_K(const float *values, void *blocks, size_t n_elements) {
    static const struct mmrt_super_type type = {16, -4, 3, -32, 31, 0};
    struct mmrt_block_q3_k *block = blocks;
    struct mmrt_super fit;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        mmrt_fit_super(values, &type, &fit);
        mmrt_store_f16(block->d, fit.d);
        memset(block->scales, 0, sizeof block->scales);
        memset(block->hmask, 0, sizeof block->hmask);
        for (int i = 0; i < 16; i++) { /* see mmrt_q3_k_scale */
            const int s = fit.s[i] + 32;
            block->scales[i % 8] |= (uint8_t)((s & 15) << (i / 8 * 4));
            block->scales[8 + i % 4] |= (uint8_t)(s >> 4 << (i / 4 * 2));
        }
        store_pairs(block->qs, fit.q, 4, 0);
        for (int i = 0; i < 256; i++)
            block->hmask[i % 32] |= (uint8_t)((fit.q[i] + 4) >> 2 << (i / 32));
    }
}

void mmrt_pack_Q4_K(const float *values, void *blocks, size_t n_elements) {
    static const struct mmrt_super_type type = {32, 0, 15, 0, 63, 63};
    struct mmrt_block_q4_k *block = blocks;
    struct mmrt_super fit;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        mmrt_fit_super(values, &type, &fit);
        mmrt_store_f16(block->d, fit.d);
        mmrt_store_f16(block->dmin, fit.dmin);
        store_scales(block->scales, fit.s, fit.m);
        store_nibbles(block->qs, fit.q);
    }
}

void mmrt_pack_Q5_K(const float *values, void *blocks, size_t n_elements) {
    static const struct mmrt_super_type type = {32, 0, 31, 0, 63, 63};
    struct mmrt_block_q5_k *block = blocks;
    struct mmrt_super fit;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        mmrt_fit_super(values, &type, &fit);
        mmrt_store_f16(block->d, fit.d);
        mmrt_store_f16(block->dmin, fit.dmin);
        store_scales(block->scales, fit.s, fit.m);
        store_nibbles(block->qs, fit.q);
        memset(block->qh, 0, sizeof block->qh);
        for (int i = 0; i < 256; i++)
            block->qh[i % 32] |= (uint8_t)(fit.q[i] >> 4 << (i / 32));
    }
}

void mmrt_pack_Q6_K(const float *values, void *blocks, size_t n_elements) {
    static const struct mmrt_super_type type = {16, -32, 31, -128, 127, 0};
    struct mmrt_block_q6_k *block = blocks;
    struct mmrt_super fit;
    for (size_t n = n_elements / 256; n > 0; n--, block++, values += 256) {
        mmrt_fit_super(values, &type, &fit);
        mmrt_store_f16(block->d, fit.d);
        for (int i = 0; i < 16; i++)
            block->scales[i] = (int8_t)fit.s[i];
        memset(block->ql, 0, sizeof block->ql);
        for (int i = 0; i < 256; i++) {
            const int nibble = (fit.q[i] + 32) & 15;
            block->ql[i / 128 * 64 + i % 64] |= (uint8_t)(nibble << (i / 64 % 2 * 4));
        }
        store_pairs(block->qh, fit.q, 32, 4);
    }
}
