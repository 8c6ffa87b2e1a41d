/* Stacks of experts as units on demand: an expert's matrix is a unit, the experts of a layer are a
 * bank. */
#ifndef MMRT_GRAPH_BANKS_H
#define MMRT_GRAPH_BANKS_H

#include "graph/pieces.h"
#include "graph/unit_list.h"

/* Finds the program's layers of experts, and appends their units, which come last. uses: how many
 * operations multiply by each weight. A stack that several multiply by has no units. */
mmrt_status mmrt_banks_make(mmrt_program *program, const int32_t *uses, struct list *units,
                            mmrt_error *err);

/* As the source takes them; [n_experts], from malloc. NULL: no memory. */
struct mmrt_bank *mmrt_banks_of(const mmrt_program *program);

#endif
