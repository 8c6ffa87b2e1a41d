/* How keys and values lie in a page: what steps write and attention reads. */
#ifndef MMRT_STATE_PAGE_H
#define MMRT_STATE_PAGE_H

#include "quant/quant.h"

/* Tokens to a page. For each layer and key-value head a page holds their keys, so that vector lanes
 * are keys, and their values:
 *
 *     F16   keys f16 [head_dim][32]           values f16 [32][head_dim]
 *     Q8_0  keys int8 [head_dim / 4][32][4]   values int8 [32][head_dim]
 *           and after either float32 [head_dim / 32][32]: what 32 elements in a row of one key or
 *           value are multiplied with. They are rounded as activations are. */
enum { MMRT_PAGE_KEYS = 32 };

/* Bytes of a page's keys, or values, of one layer and head. */
static inline size_t mmrt_page_bytes(uint32_t type, size_t head_dim) {
    const size_t elements = head_dim * MMRT_PAGE_KEYS;
    return type == MMRT_TYPE_Q8_0 ? elements + elements / MMRT_GROUP * sizeof(float) : 2 * elements;
}

#endif
