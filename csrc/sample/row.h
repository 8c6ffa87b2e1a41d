/* A row of logits as a draw sees it: biases and penalties change some of them, a mask forbids
 * others. The row itself is never written; mask and changes are applied to each block as it is
 * read. */
#ifndef MMRT_SAMPLE_ROW_H
#define MMRT_SAMPLE_ROW_H

#include "kernels/kernels.h"

enum { MMRT_BLOCK_LOGITS = 64 };

/* A logit that biases and penalties have changed. */
struct mmrt_changed {
    int32_t token;
    float logit;
};

struct mmrt_row {
    const struct mmrt_kernels *kernels;
    const float *logits;
    size_t n;
    const uint32_t *mask; /* NULL: all tokens are allowed */
    const struct mmrt_changed *changed;
    size_t n_changed; /* in order of token */
    size_t n_blocks;
    float *maxima;  /* [n_blocks] the largest logit of each block */
    float *scratch; /* [n_blocks] room for a number of each block */
    float largest;
};

/* Sets the fields after n_changed; `maxima` and `scratch` have room for
 * ceil(n / MMRT_BLOCK_LOGITS) floats each. False if a logit is NaN. */
bool mmrt_row_scan(struct mmrt_row *row, float *maxima, float *scratch);

/* Takes mask and changes off a row that was scanned. False if one of its logits is NaN. */
bool mmrt_row_restore(struct mmrt_row *row);

/* The MMRT_BLOCK_LOGITS logits of a block, in the row or in `room`. Forbidden tokens and places
 * past the row's end have -infinity. */
const float *mmrt_row_block(const struct mmrt_row *row, size_t block,
                            float room[MMRT_BLOCK_LOGITS]);

/* The `count`-th largest of the blocks' maxima, so that at least `count` logits are as large;
 * -infinity if there are fewer blocks. */
float mmrt_row_floor(const struct mmrt_row *row, size_t count);

#endif
