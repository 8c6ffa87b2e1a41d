#include "sample/candidates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void mmrt_candidates_free(struct mmrt_candidates *c) {
    free(c->tokens);
    free(c->logits);
    free(c->weights);
    free(c->ranked);
}

static bool grow(void **array, size_t n, size_t bytes) {
    void *grown = realloc(*array, n * bytes);
    if (grown)
        *array = grown;
    return grown;
}

/* Room for one more block. */
static bool make_room(struct mmrt_candidates *c) {
    if (c->n + MMRT_BLOCK_LOGITS <= c->room)
        return true;
    const size_t room = 2 * c->room + 16 * MMRT_BLOCK_LOGITS;
    if (!grow((void **)&c->tokens, room, sizeof *c->tokens) ||
        !grow((void **)&c->logits, room, sizeof *c->logits) ||
        !grow((void **)&c->weights, room, sizeof *c->weights) ||
        !grow((void **)&c->ranked, room, sizeof *c->ranked))
        return false;
    c->room = room;
    return true;
}

bool mmrt_candidates_collect(struct mmrt_candidates *c, const struct mmrt_row *row, float floor) {
    c->n = 0;
    for (size_t block = 0; block < row->n_blocks; block++) {
        if (row->maxima[block] < floor)
            continue;
        if (!make_room(c))
            return false;
        float room[MMRT_BLOCK_LOGITS];
        const float *x = mmrt_row_block(row, block, room);
        for (size_t i = 0; i < MMRT_BLOCK_LOGITS; i++) {
            c->tokens[c->n] = (int32_t)(block * MMRT_BLOCK_LOGITS + i);
            c->logits[c->n] = x[i];
            c->n += x[i] >= floor && x[i] > -INFINITY;
        }
    }
    return true;
}

double mmrt_candidates_weigh(struct mmrt_candidates *c, const struct mmrt_row *row, float scale) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i += MMRT_BLOCK_LOGITS) { /* sums of few floats are exact enough */
        const size_t left = c->n - i, n = left < MMRT_BLOCK_LOGITS ? left : MMRT_BLOCK_LOGITS;
        sum += row->kernels->exponentials(c->logits + i, row->largest, scale, c->weights + i, n);
    }
    return sum;
}

static bool likelier(const struct mmrt_ranked *a, const struct mmrt_ranked *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static void swap(struct mmrt_ranked *a, struct mmrt_ranked *b) {
    const struct mmrt_ranked kept = *a;
    *a = *b;
    *b = kept;
}

/* Moves those likelier than x[pivot] before it; returns the pivot's new place. */
static size_t partition(struct mmrt_ranked *x, size_t first, size_t end, size_t pivot) {
    size_t place = first;
    swap(&x[pivot], &x[end - 1]);
    for (size_t i = first; i + 1 < end; i++)
        if (likelier(&x[i], &x[end - 1]))
            swap(&x[i], &x[place++]);
    swap(&x[place], &x[end - 1]);
    return place;
}

/* The last candidate to keep: a quickselect that counts weight instead of elements. */
static struct mmrt_ranked last_kept(struct mmrt_ranked *x, size_t n, double mass) {
    size_t first = 0, end = n;
    double before = 0; /* the weight of those before `first`, which are all likelier */
    while (end - first > 1) {
        const size_t place = partition(x, first, end, first + (end - first) / 2);
        double weight = before;
        for (size_t i = first; i < place; i++)
            weight += (double)x[i].weight;
        if (weight >= mass && place > first) {
            end = place;
        } else if (weight + (double)x[place].weight >= mass || place + 1 == end) {
            return x[place];
        } else {
            before = weight + (double)x[place].weight;
            first = place + 1;
        }
    }
    return x[first];
}

void mmrt_candidates_keep(struct mmrt_candidates *c, double mass) {
    if (!c->n)
        return;
    for (size_t i = 0; i < c->n; i++)
        c->ranked[i] = (struct mmrt_ranked){c->logits[i], c->tokens[i], c->weights[i]};
    const struct mmrt_ranked last = last_kept(c->ranked, c->n, mass);
    size_t n = 0;
    for (size_t i = 0; i < c->n; i++) {
        const struct mmrt_ranked one = {c->logits[i], c->tokens[i], c->weights[i]};
        if (likelier(&last, &one))
            continue;
        c->tokens[n] = one.token;
        c->logits[n] = one.logit;
        c->weights[n++] = one.weight;
    }
    c->n = n;
}

void mmrt_candidates_above(struct mmrt_candidates *c, float floor) {
    size_t n = 0;
    for (size_t i = 0; i < c->n; i++)
        if (c->logits[i] >= floor) {
            c->tokens[n] = c->tokens[i];
            c->logits[n++] = c->logits[i];
        }
    c->n = n;
}
