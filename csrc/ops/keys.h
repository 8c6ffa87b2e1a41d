/* Queries and keys turned by their positions; keys and values written to their pages. */
#ifndef MMRT_OPS_KEYS_H
#define MMRT_OPS_KEYS_H

#include "graph/program.h"

/* Turns the pairs of a head by the cosines and sines of its position. interleaved: pairs are
 * neighbours; otherwise elements of two halves. */
void mmrt_rotate(float *head, const float *table, size_t n_pairs, bool interleaved);

/* A key, or a value, of `dim` elements, from `element` of a column on, to its place in a page. Of
 * type Q8_0, the column has been quantised. */
void mmrt_store_key(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
                    size_t column, size_t element, size_t dim);
void mmrt_store_value(uint32_t type, uint8_t *page, size_t slot, const struct mmrt_columns *from,
                      size_t column, size_t element, size_t dim);

#endif
