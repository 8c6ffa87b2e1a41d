/* Which units of weights to keep in memory, and which to read again in each pass. */
#ifndef MMRT_SOURCE_ORDER_H
#define MMRT_SOURCE_ORDER_H

#include <stddef.h>
#include <stdint.h>

/* Reads shorter than this do not bring the disk to its speed: such units are kept first. */
enum { MMRT_PLAN_SMALL = 256 << 10 };

/* Writes to order[0..n) the units' numbers in the order in which a growing budget keeps them; `n`
 * units of bytes[i] each, numbered as a pass reads them. First the small ones. Then the others so
 * that the kept ones of every budget, and so the streamed ones, lie evenly over the pass: reads and
 * arithmetic overlap from its start to its end. Keeping a little more or less changes nothing but
 * the units at the end of what was kept. */
void mmrt_keep_order(const uint64_t *bytes, size_t n, uint32_t *order);

/* How many units, in that order, fit into `budget` bytes; *used: what they take. */
size_t mmrt_keep_fit(const uint64_t *bytes, const uint32_t *order, size_t n, uint64_t budget,
                     uint64_t *used);

#endif
