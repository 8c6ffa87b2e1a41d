/* Keys and values in pages. Attention reads pages by address; nothing here knows arithmetic. */
#ifndef MMRT_KV_H
#define MMRT_KV_H

#include "mmrt.h"

/* Allocates pages until the sequence has room for `length` tokens; NO_MEMORY leaves it as it was.
 */
mmrt_status mmrt_kv_reserve(mmrt_kv *kv, uint64_t length, mmrt_error *err);

/* The pages in order; page i holds tokens 32 i to 32 i + 31. */
uint8_t *const *mmrt_kv_pages(const mmrt_kv *kv);

/* Bytes from a page's start to the keys and values of one layer and head (laid out as kernels.h
 * says). */
size_t mmrt_kv_keys_at(const mmrt_kv *kv, uint32_t layer, uint32_t head);
size_t mmrt_kv_values_at(const mmrt_kv *kv, uint32_t layer, uint32_t head);

/* Declares that the tokens before `length`, all reserved, are written. */
void mmrt_kv_set_length(mmrt_kv *kv, uint64_t length);

mmrt_kv_shape mmrt_kv_shape_of(const mmrt_kv *kv);

#endif
