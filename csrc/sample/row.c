#include "sample/row.h"

#include <math.h>
#include <string.h>

/* The first change of `token` or one above it. */
static size_t first_change(const struct mmrt_row *row, int64_t token) {
    size_t first = 0, end = row->n_changed;
    while (first < end) {
        const size_t middle = first + (end - first) / 2;
        if (row->changed[middle].token < token)
            first = middle + 1;
        else
            end = middle;
    }
    return first;
}

/* Whether all tokens of a block are allowed. */
static bool allows_block(const uint32_t *mask, size_t block) {
    const uint32_t *words = mask + block * (MMRT_BLOCK_LOGITS / 32);
    return (words[0] & words[1]) == UINT32_MAX;
}

/* Forbids those of 32 tokens whose bits are 0, by lanes that the compiler makes vectors of. */
static void forbid(float x[32], uint32_t allowed) {
    static const uint32_t bits[] = {
#define FOUR(i) 1u << (i), 2u << (i), 4u << (i), 8u << (i)
        FOUR(0), FOUR(4), FOUR(8), FOUR(12), FOUR(16), FOUR(20), FOUR(24), FOUR(28),
#undef FOUR
    };
    for (size_t i = 0; i < 32; i++) {
        const float logit = x[i];
        x[i] = allowed & bits[i] ? logit : -INFINITY;
    }
}

const float *mmrt_row_block(const struct mmrt_row *row, size_t block,
                            float room[MMRT_BLOCK_LOGITS]) {
    const size_t first = block * MMRT_BLOCK_LOGITS, left = row->n - first;
    const size_t n = left < MMRT_BLOCK_LOGITS ? left : MMRT_BLOCK_LOGITS;
    size_t change = first_change(row, (int64_t)first);
    const bool changes = change < row->n_changed && (size_t)row->changed[change].token < first + n;
    if (n == MMRT_BLOCK_LOGITS && !changes && (!row->mask || allows_block(row->mask, block)))
        return row->logits + first;
    memcpy(room, row->logits + first, n * sizeof *room);
    for (; change < row->n_changed && (size_t)row->changed[change].token < first + n; change++)
        room[(size_t)row->changed[change].token - first] = row->changed[change].logit;
    for (size_t i = n; i < MMRT_BLOCK_LOGITS; i++)
        room[i] = -INFINITY;
    for (size_t i = 0; row->mask && i < n; i += 32)
        forbid(room + i, row->mask[(first + i) / 32]);
    return room;
}

static void scan_block(struct mmrt_row *row, size_t block, bool *nan) {
    float room[MMRT_BLOCK_LOGITS];
    row->maxima[block] = row->kernels->largest(mmrt_row_block(row, block, room), MMRT_BLOCK_LOGITS);
    *nan |= isnan(row->maxima[block]);
}

static void find_largest(struct mmrt_row *row) {
    row->largest = -INFINITY;
    for (size_t i = 0; i < row->n_blocks; i++)
        row->largest = row->maxima[i] > row->largest ? row->maxima[i] : row->largest;
}

bool mmrt_row_scan(struct mmrt_row *row, float *maxima, float *scratch) {
    bool nan = false;
    row->n_blocks = (row->n + MMRT_BLOCK_LOGITS - 1) / MMRT_BLOCK_LOGITS;
    row->maxima = maxima;
    row->scratch = scratch;
    for (size_t i = 0; i < row->n_blocks; i++)
        scan_block(row, i, &nan);
    find_largest(row);
    return !nan;
}

bool mmrt_row_restore(struct mmrt_row *row) {
    const bool masked = row->mask;
    const size_t n = row->n_changed;
    bool nan = false;
    row->mask = NULL;
    row->n_changed = 0;
    for (size_t i = 0; masked && i < row->n_blocks; i++)
        scan_block(row, i, &nan);
    for (size_t i = 0; !masked && i < n; i++)
        scan_block(row, (size_t)row->changed[i].token / MMRT_BLOCK_LOGITS, &nan);
    find_largest(row);
    return !nan;
}

/* Quickselect (Hoare 1961, "Algorithm 65: Find"). */
float mmrt_row_floor(const struct mmrt_row *row, size_t count) {
    if (count > row->n_blocks)
        return -INFINITY;
    float *x = row->scratch;
    memcpy(x, row->maxima, row->n_blocks * sizeof *x);
    size_t first = 0, last = row->n_blocks - 1;
    const size_t wanted = count - 1;
    while (first < last) {
        const float pivot = x[first + (last - first) / 2];
        size_t i = first, j = last;
        for (;;) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i >= j)
                break;
            const float swapped = x[i];
            x[i++] = x[j];
            x[j--] = swapped;
        }
        /* Those up to j are not below the pivot, those after it not above. */
        if (wanted <= j)
            last = j;
        else
            first = j + 1;
    }
    return x[wanted];
}
