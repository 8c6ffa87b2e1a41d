#include "kernels/ref/ref.h"

#include <math.h>

void mmrt_quantize_ref(const struct mmrt_columns *columns, size_t column, size_t first,
                       size_t count) {
    for (size_t at = first; at < first + count; at += MMRT_GROUP) {
        const float *x = columns->x + column * columns->k + at;
        int8_t *q = columns->q + column * columns->stride + at;
        size_t group = (column * columns->stride + at) / MMRT_GROUP;
        float largest = 0;
        bool finite = true;
        for (int i = 0; i < MMRT_GROUP; i++) {
            finite = finite && isfinite(x[i]);
            largest = fmaxf(largest, fabsf(x[i]));
        }
        float d = largest / 127.0f;
        float inverse = d > 0 ? 1.0f / d : 0;
        if (!finite || !isfinite(inverse)) { /* NaN, infinity, or too small to divide by */
            inverse = 0;
            d = finite ? 0 : NAN;
        }
        int sums[2] = {0, 0};
        for (int i = 0; i < MMRT_GROUP; i++) {
            q[i] = finite ? (int8_t)lrintf(x[i] * inverse) : 0;
            sums[i / 16] += q[i];
        }
        columns->d[group] = d;
        columns->sum16[2 * group] = d * (float)sums[0];
        columns->sum16[2 * group + 1] = d * (float)sums[1];
        columns->sum32[group] = d * (float)(sums[0] + sums[1]);
        columns->start16[2 * group] = -128 * sums[0];
        columns->start16[2 * group + 1] = -128 * sums[1];
        columns->start32[group] = -128 * (sums[0] + sums[1]);
    }
}

void mmrt_rms_norm_ref(const float *x, const float *w, float eps, float *out, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float scale = (float)(1.0 / sqrt(sum / (double)n + eps));
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * (w ? w[i] : 1);
}

void mmrt_centre_ref(const float *x, float *out, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(x[i] - mean);
}

void mmrt_add_ref(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* 1 + tanh u = 2 / (1 + e^-2u): the left side loses its digits where tanh u is near -1. */
static double activate(enum mmrt_activation activation, double x) {
    if (activation == MMRT_RELU)
        return x < 0 ? 0 : x; /* NaN stays NaN */
    if (activation == MMRT_RELU2)
        return x < 0 ? 0 : x * x;
    if (activation == MMRT_CLAMPED_SILU && x > MMRT_CLAMP)
        x = MMRT_CLAMP;
    double z = activation == MMRT_CLAMPED_SILU ? MMRT_CLAMP_SLOPE * x : x;
    if (activation == MMRT_GELU)
        z = 2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    return x / (1 + exp(-z));
}

void mmrt_activate_ref(enum mmrt_activation activation, float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        x[i] = (float)activate(activation, x[i]);
}

/* What a gate is multiplied with. */
static double gated(enum mmrt_activation activation, double up) {
    if (activation != MMRT_CLAMPED_SILU)
        return up;
    return (up > MMRT_CLAMP ? MMRT_CLAMP : up < -MMRT_CLAMP ? -MMRT_CLAMP : up) + 1;
}

void mmrt_glu_ref(enum mmrt_activation activation, const float *gate, const float *up, float *out,
                  size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(activate(activation, gate[i]) * gated(activation, up[i]));
}

float mmrt_largest_ref(const float *x, size_t n) {
    float largest = x[0];
    for (size_t i = 1; i < n; i++)
        if (isnan(x[i]) || x[i] > largest) /* nothing is above NaN */
            largest = x[i];
    return largest;
}

float mmrt_exponentials_ref(const float *x, float largest, float scale, float *out, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)exp(((double)x[i] - largest) * scale);
        sum += out[i];
    }
    return (float)sum;
}
