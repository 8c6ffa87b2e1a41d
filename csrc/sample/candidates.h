/* The tokens that have passed the filters so far, with their logits. */
#ifndef MMRT_SAMPLE_CANDIDATES_H
#define MMRT_SAMPLE_CANDIDATES_H

#include "sample/row.h"

struct mmrt_candidates {
    size_t n, room;
    int32_t *tokens; /* in rising order */
    float *logits;
    float *weights;
    struct mmrt_ranked *ranked; /* room to sort them */
};

struct mmrt_ranked {
    float logit;
    int32_t token;
    float weight;
};

void mmrt_candidates_free(struct mmrt_candidates *c);

/* Replaces the candidates by all tokens of the row whose logits are `floor` or above and are not
 * -infinity. False if there is no memory. */
bool mmrt_candidates_collect(struct mmrt_candidates *c, const struct mmrt_row *row, float floor);

/* weights[i] = exp((logits[i] - the row's largest) * scale); returns their sum. */
double mmrt_candidates_weigh(struct mmrt_candidates *c, const struct mmrt_row *row, float scale);

/* Keeps the fewest candidates whose weights add up to `mass` or more, taking the likeliest first
 * and, of equal ones, the lower token. With weights of 1 it keeps `mass` of them. */
void mmrt_candidates_keep(struct mmrt_candidates *c, double mass);

/* Keeps those with logits of `floor` or above. */
void mmrt_candidates_above(struct mmrt_candidates *c, float floor);

#endif
