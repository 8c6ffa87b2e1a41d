/* Matrices that are there by columns too, in a table whose rows are read on demand. */
#ifndef MMRT_GRAPH_COLUMNS_H
#define MMRT_GRAPH_COLUMNS_H

#include "graph/program.h"

/* Finds the operations that have columns. Within a budget, steps of one token read the columns that
 * they need, and do without the units of the matrix. */
mmrt_status mmrt_columns_make(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                              mmrt_error *err);

/* What of a budget for weights is for columns; 0 if it holds all matrices, or there are none.
 * least: of the budget that they take at least. */
uint64_t mmrt_columns_share(const mmrt_program *program, uint64_t budget);
uint64_t mmrt_columns_least(const mmrt_program *program);

#endif
