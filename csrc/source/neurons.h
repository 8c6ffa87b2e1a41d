/* Rows of tables that a step asks for by their numbers, many at once, as a layer's neurons: those
 * that are not in memory are read together, past the page cache, by as many threads as keep a disk
 * busy with small reads. As many as there is room for stay, those that were used last. Taking a
 * row's place, and finding it, take the same time however many there are. */
#ifndef MMRT_SOURCE_NEURONS_H
#define MMRT_SOURCE_NEURONS_H

#include "mmrt.h"

typedef struct mmrt_neurons mmrt_neurons;

/* A table in one of the files. */
struct mmrt_neurons_table {
    int32_t file;
    uint64_t offset; /* bytes */
    uint64_t rows;
    uint64_t row_bytes; /* that are read */
    uint64_t stride;    /* bytes from one row to the next */
};

/* Copies the tables. There is no room for rows yet. */
mmrt_status mmrt_neurons_create(mmrt_mapping *const *files, int32_t n_files,
                                const struct mmrt_neurons_table *tables, int32_t n_tables,
                                mmrt_neurons **out, mmrt_error *err);
void mmrt_neurons_free(mmrt_neurons *neurons);

/* From the next pass on; MAPPED, as at first: through the page cache, which keeps nothing of it. */
void mmrt_neurons_set_reader(mmrt_neurons *neurons, mmrt_reader reader);

/* Bytes for slots within a budget, of which `spare` bytes have no better use: at least the least,
 * and so many that a budget that changes a little changes nothing. least: room for all rows of the
 * largest table. */
uint64_t mmrt_neurons_share(const mmrt_neurons *neurons, uint64_t budget, uint64_t spare);
uint64_t mmrt_neurons_least(const mmrt_neurons *neurons);

/* How much room there is to be, a share or 0, from the next pass on. */
void mmrt_neurons_set_room(mmrt_neurons *neurons, uint64_t bytes);
uint64_t mmrt_neurons_room(const mmrt_neurons *neurons);

/* Between two passes: what has been read is forgotten, as if there had been none. */
void mmrt_neurons_forget(mmrt_neurons *neurons);

/* Begins a pass. */
mmrt_status mmrt_neurons_begin(mmrt_neurons *neurons, mmrt_error *err);

/* Whether there is room in this pass. */
bool mmrt_neurons_are_read(const mmrt_neurons *neurons);

/* The pass needs these rows, any number of them. turn: above 0, and another than that of the want
 * before in this pass. By one thread. */
void mmrt_neurons_want(mmrt_neurons *neurons, int32_t turn, int32_t table, const uint32_t *rows,
                       size_t n);

/* Waits up to `seconds` for the rows of this turn; 0: for all that is being read, which has to have
 * come before more is wanted. False: not all are there yet, or a read has failed. */
bool mmrt_neurons_wait(mmrt_neurons *neurons, int32_t turn, double seconds, bool *failed);

/* Where a row is that was wanted and waited for, until the next want. */
const uint8_t *mmrt_neurons_row(const mmrt_neurons *neurons, int32_t table, uint32_t row);

/* Why a read has failed; OK: none has. table, row: whose. */
mmrt_status mmrt_neurons_error(mmrt_neurons *neurons, int32_t *table, uint32_t *row,
                               mmrt_error *err);

void mmrt_neurons_get_stats(mmrt_neurons *neurons, mmrt_demand_stats *stats);

#endif
