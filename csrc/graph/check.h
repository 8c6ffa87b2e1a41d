/* For the checks of operations: that buffers and weights are there, fit, and hold what is read. An
 * operation reads only what others before it have written in the same step, so that nothing of an
 * earlier step is taken for it. */
#ifndef MMRT_GRAPH_CHECK_H
#define MMRT_GRAPH_CHECK_H

#include "graph/program.h"

/* Whether the buffer, for the tokens that the operation works on, holds values, and quantised ones
 * too if it is to be read so. */
mmrt_status mmrt_check_read(const mmrt_program *program, const mmrt_op *op, int32_t buffer,
                            bool quantised, mmrt_error *err);

/* Whether there is such a buffer. */
mmrt_status mmrt_check_buffer(const mmrt_program *program, int32_t buffer, mmrt_error *err);

/* Whether `out` is not `in`, which every thread reads while others write. */
mmrt_status mmrt_check_apart(const mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* Notes that the operation reads the buffer in this way. Call this and mmrt_note_write only when
 * nothing can fail any more. */
void mmrt_note_read(mmrt_program *program, int32_t buffer, bool quantised);

/* The same of an operation that takes columns which are not the step's last ones. */
void mmrt_note_read_of_any(mmrt_program *program, int32_t buffer, bool quantised);

/* The buffer holds new values, and quantised ones too, for the tokens that the operation works on.
 */
void mmrt_note_write(mmrt_program *program, const mmrt_op *op, int32_t buffer, bool quantised);

/* Whether there is such a weight, with rows of `cols`; rows: 0 for any number of them. */
mmrt_status mmrt_check_weight(const mmrt_program *program, int32_t weight, uint64_t rows,
                              uint64_t cols, mmrt_error *err);

/* Rows of float32 values, which are used where they lie. */
mmrt_status mmrt_check_floats(const mmrt_program *program, int32_t weight, uint64_t rows,
                              uint64_t cols, mmrt_error *err);

/* A norm or a bias of n float32 values, which is used where it lies. */
mmrt_status mmrt_check_vector(const mmrt_program *program, int32_t weight, uint64_t n,
                              mmrt_error *err);

/* One of the operation's matrices, with its bias, which is to fit what the operation reads. */
mmrt_status mmrt_check_matrix(const mmrt_program *program, const mmrt_op *op, int i, uint64_t rows,
                              mmrt_error *err);

/* Whether the matrices read their columns quantised. There is at least one. */
bool mmrt_reads_quantised(const mmrt_program *program, const mmrt_op *op);

#endif
