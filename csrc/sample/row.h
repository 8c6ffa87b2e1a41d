/* A row of logits as a draw sees it: some tokens forbidden, some held back. The row itself stays as
 * it is; blocks of it are read with what changes them. */
#ifndef MMRT_SAMPLE_ROW_H
#define MMRT_SAMPLE_ROW_H

#include "mmrt.h"

enum { MMRT_BLOCK_LOGITS = 64 };

/* A logit that penalties have changed. */
struct mmrt_changed {
    int32_t token;
    float logit;
};

struct mmrt_row {
    const float *logits;
    size_t n;
    const uint32_t *mask; /* NULL: all tokens are allowed */
    const struct mmrt_changed *changed;
    size_t n_changed; /* by rising token */
    size_t n_blocks;
    float *maxima;  /* [n_blocks] the largest logit of each block */
    float *ordered; /* [n_blocks] room to put them in order */
    float largest;
};

/* Fills in what follows n_changed; `maxima` and `ordered` have room for
 * ceil(n / MMRT_BLOCK_LOGITS) floats each. False if a logit is NaN. */
bool mmrt_row_scan(struct mmrt_row *row, float *maxima, float *ordered);

/* Takes mask and changes off a row that was scanned. */
void mmrt_row_restore(struct mmrt_row *row);

/* The logits of a block, MMRT_BLOCK_LOGITS of them: those past the row's end and those of forbidden
 * tokens are -infinity. They lie in the row or in `room`. */
const float *mmrt_row_block(const struct mmrt_row *row, size_t block,
                            float room[MMRT_BLOCK_LOGITS]);

/* The `count`-th largest of the blocks' maxima: `count` logits at least are as large. -infinity if
 * there are fewer blocks. */
float mmrt_row_floor(const struct mmrt_row *row, size_t count);

#endif
