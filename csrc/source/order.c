#include "source/order.h"

#include <stdlib.h>

/* Turns of the golden section around a circle: whichever part of the circle one looks at, it is met
 * again and again after at most three different numbers of turns, and no choice of the angle keeps
 * these closer together (three-gap theorem, Swierczkowski 1958). In 2^-64ths of the circle. */
static uint64_t place_on_circle(uint32_t turns) {
    return turns * UINT64_C(0x9e3779b97f4a7c15);
}

static int by_place(const void *a, const void *b) {
    const uint64_t x = place_on_circle(*(const uint32_t *)a),
                   y = place_on_circle(*(const uint32_t *)b);
    return (x > y) - (x < y);
}

void mmrt_keep_order(const uint64_t *bytes, size_t n, uint32_t *order) {
    size_t small = 0, large = 0;
    for (size_t i = 0; i < n; i++)
        small += bytes[i] < MMRT_PLAN_SMALL;
    uint32_t *next_small = order, *const larges = order + small;
    for (size_t i = 0; i < n; i++)
        if (bytes[i] < MMRT_PLAN_SMALL)
            *next_small++ = (uint32_t)i;
        else
            larges[large++] = (uint32_t)i;
    qsort(larges, large, sizeof *larges, by_place);
}

size_t mmrt_keep_fit(const uint64_t *bytes, const uint32_t *order, size_t n, uint64_t budget,
                     uint64_t *used) {
    size_t kept = 0;
    *used = 0;
    while (kept < n && bytes[order[kept]] <= budget - *used)
        *used += bytes[order[kept++]];
    return kept;
}
