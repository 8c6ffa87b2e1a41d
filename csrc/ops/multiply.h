/* Rows of an operation's matrices times its tokens. */
#ifndef MMRT_OPS_MULTIPLY_H
#define MMRT_OPS_MULTIPLY_H

#include "step/step.h"

/* y[t * y_stride + r] = row r of `rows`, which are the operation's matrix number `i` from row
 * `first` on, times its token t; scaled, with the bias. next, scratch: as for mmrt_multiply. */
void mmrt_op_multiply(const struct worker *w, int i, const uint8_t *rows, uint64_t first,
                      uint64_t n_rows, const uint8_t *next, float *y, size_t y_stride,
                      void *scratch);

/* Bytes of scratch for that. */
size_t mmrt_op_multiply_scratch(const mmrt_program *program, const mmrt_op *op);

#endif
