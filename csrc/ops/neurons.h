/* The neurons that the only token of a step needs: which they are, and where a bundle has them. */
#ifndef MMRT_OPS_NEURONS_H
#define MMRT_OPS_NEURONS_H

#include "step/step.h"

/* Bytes of a thread's scratch for n neurons, after MMRT_MATMUL_SCRATCH that kernels need. */
size_t mmrt_neurons_scratch(size_t n);

/* Of n neurons, those whose elements are not zero, or are NaN, in rising order. They are in scratch
 * until it is used otherwise. */
size_t mmrt_find_neurons(const struct worker *w, const float *x, size_t n);
const uint32_t *mmrt_which_neurons(const struct worker *w, size_t n);

/* Where the bundle has each of these, in scratch: to be filled, or as filled by mmrt_read_neurons.
 */
const uint8_t **mmrt_where_neurons(const struct worker *w);

/* The neuron's row of the operation's matrix number `i`, times the only token. */
float mmrt_times_neuron(struct worker *w, int i, const uint8_t *row, uint32_t neuron);

/* Bytes from where a neuron begins in a table to its rows, which come after the column. column: of
 * so many elements. */
uint64_t mmrt_neuron_column(const mmrt_program *program, int32_t table, uint64_t column);

/* FormatError, unless the table has so many neurons of `bytes`, of single numbers. */
mmrt_status mmrt_check_neurons(const mmrt_program *program, int32_t table, uint64_t n,
                               uint64_t bytes, mmrt_error *err);

/* Reads the first n_needed of these from the operation's table of columns, unless they are in
 * memory, where they stay until the operation ends. False: the step ends with this operation. */
bool mmrt_read_neurons(struct worker *w, size_t n, size_t n_needed);

#endif
