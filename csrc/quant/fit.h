/* Finding the scales that meet given values best, for the encoders. Best is in the sense of least
 * squares, all values counting alike: of the activations that they will be multiplied with nothing
 * is known.
 *
 * Values are at most 65504 in size, which is binary16's largest. Their number is a multiple of 4.
 * Whatever is found comes from trying many scales, not from proof. */
#ifndef MMRT_FIT_H
#define MMRT_FIT_H

#include <stdbool.h>
#include <stdint.h>

/* x = scale * q - min */
struct mmrt_line {
    float scale, min;
};

/* The number that binary16 makes of a scale. */
float mmrt_rounded_f16(float value);

/* The best scale, of either sign, for whole q from lo to hi and min = 0; 0 if all x are 0.
 * lo < 0 < hi, and -lo is hi or hi + 1. */
float mmrt_fit_scale(const float *x, int n, int lo, int hi);

/* The best scale > 0 and min for whole q from 0 to hi, scale = 0 if all x are equal.
 * only_up: with min >= 0. n is at most 32. */
struct mmrt_line mmrt_fit_line(const float *x, int n, int hi, bool only_up);

/* Writes the q, from lo to hi, that meet x best on a line. */
void mmrt_round_line(const float *x, int n, struct mmrt_line line, int lo, int hi, int8_t *q);

/* The best scale, of either sign, where q stands for values[q]; 16 of them, rising. */
float mmrt_fit_values(const float *x, int n, const int8_t values[16]);

/* Writes the q that meet x best as scale * values[q]. */
void mmrt_round_values(const float *x, int n, float scale, const int8_t values[16], int8_t *q);

#endif
