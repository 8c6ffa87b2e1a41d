/* A program whose weights may be streamed: its matrices as units of whole rows, in the order in
 * which a step reads them. */
#define _GNU_SOURCE
#include "graph/banks.h"
#include "graph/columns.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Size of a unit: large enough that a few in flight bring a disk to its full speed. Two pages less
 * than a huge page, because reads are aligned. */
enum { UNIT_BYTES = (2 << 20) - 8192 };

/* ---- which units there are ---- */

/* Rows that a unit of this weight has: whole pieces, and about the same in each unit. */
static uint64_t rows_of_units(const mmrt_weight *w, uint64_t piece) {
    uint64_t most = UNIT_BYTES / mmrt_row_bytes(w) / piece * piece;
    if (most < piece)
        most = piece;
    const uint64_t n = (w->rows + most - 1) / most;
    return (w->rows + n * piece - 1) / (n * piece) * piece;
}

/* How many operations multiply by each weight. */
static void count_uses(const mmrt_program *program, int32_t *uses) {
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        for (int j = 0; j < 3; j++)
            if (has_role(op, j, MATRIX) || has_role(op, j, STACK))
                uses[op->weights[j]]++;
    }
}

static mmrt_status find_file(const mmrt_weight *w, mmrt_mapping *const *files, int32_t n_files,
                             struct place *place, mmrt_error *err) {
    for (int32_t i = 0; i < n_files; i++) {
        const uintptr_t start = (uintptr_t)mmrt_mapping_data(files[i]), at = (uintptr_t)w->data;
        if (at >= start && at - start < mmrt_mapping_size(files[i])) {
            place->file = i;
            place->offset = at - start;
            return MMRT_OK;
        }
    }
    return mmrt_fail(err, MMRT_ARGUMENT, "tensor %s: it lies in none of the files", w->name);
}

/* The units of an operation, in the order in which its rows are taken: one weight after another,
 * but gate and up side by side. A weight's own units need not follow one another, so each notes
 * where it is. */
static bool add_units_of(mmrt_program *program, const mmrt_op *op, struct list *units) {
    const bool side_by_side = mmrt_op_info(op->kind)->side_by_side;
    uint64_t next[3] = {0};
    for (;;) {
        int chosen = -1;
        for (int i = 0; i < 3; i++) {
            if (!has_role(op, i, MATRIX))
                continue;
            const struct place *place = &program->units->places[op->weights[i]];
            if (!place->units || next[i] >= program->weights[op->weights[i]].rows)
                continue;
            if (chosen < 0 || (side_by_side && next[i] < next[chosen]))
                chosen = i;
        }
        if (chosen < 0)
            return true;
        const int32_t weight = op->weights[chosen];
        struct place *place = &program->units->places[weight];
        place->units[next[chosen] / place->unit_rows] = units->n;
        if (!mmrt_list_add(units, &program->weights[weight], place, next[chosen]))
            return false;
        next[chosen] += place->unit_rows;
    }
}

/* A weight that several operations multiply by has no units, and so is kept. */
static mmrt_status find_places(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                               const int32_t *uses, mmrt_error *err) {
    for (int32_t i = 0; i < program->n_weights; i++) {
        const mmrt_status status =
            find_file(&program->weights[i], files, n_files, &program->units->places[i], err);
        if (status)
            return status;
    }
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        const struct pieces pieces = mmrt_pieces_of(program, op);
        for (int j = 0; j < pieces.n_weights; j++) {
            if (uses[op->weights[j]] != 1)
                continue;
            const mmrt_weight *w = &program->weights[op->weights[j]];
            struct place *place = &program->units->places[op->weights[j]];
            place->unit_rows = rows_of_units(w, pieces.rows[j]);
            place->n_units = (int32_t)((w->rows + place->unit_rows - 1) / place->unit_rows);
            place->units = malloc((size_t)place->n_units * sizeof *place->units);
            if (!place->units)
                return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
        }
    }
    return MMRT_OK;
}

static mmrt_status divide(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                          struct list *list, int32_t *n_in_order, mmrt_error *err) {
    int32_t *uses = calloc((size_t)program->n_weights, sizeof *uses);
    struct units *units = program->units;
    units->places = calloc((size_t)program->n_weights, sizeof *units->places);
    units->op_units = calloc((size_t)program->n_ops, sizeof *units->op_units);
    units->in_order = calloc((size_t)program->n_ops, sizeof *units->in_order);
    mmrt_status status = MMRT_OK;
    if (!uses || !units->places || !units->op_units || !units->in_order) {
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    } else {
        count_uses(program, uses);
        status = find_places(program, files, n_files, uses, err);
    }
    for (int32_t i = 0; !status && i < program->n_ops; i++) {
        units->op_units[i][0] = list->n;
        if (!add_units_of(program, &program->ops[i], list))
            status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
        units->op_units[i][1] = list->n;
    }
    *n_in_order = list->n;
    if (!status)
        status = mmrt_banks_make(program, uses, list, err);
    free(uses);
    return status;
}

void mmrt_units_free(mmrt_program *program) {
    struct units *units = program->units;
    if (!units)
        return;
    mmrt_source_free(units->source);
    mmrt_neurons_free(units->neurons);
    for (int32_t i = 0; units->places && i < program->n_weights; i++)
        free(units->places[i].units);
    free(units->places);
    free(units->op_units);
    free(units->op_columns);
    free(units->in_order);
    free(units->experts);
    free(units->op_experts);
    free(units->wanted);
    free(units->recent);
    if (units->row_scratch)
        munmap(units->row_scratch, (size_t)program->n_threads * units->row_scratch_bytes);
    free(units);
    program->units = NULL;
}

/* Each thread has room for one row of a table. */
static mmrt_status make_row_scratch(mmrt_program *program, mmrt_error *err) {
    struct units *units = program->units;
    uint64_t bytes = 0;
    for (int32_t i = 0; i < program->n_ops; i++)
        for (int j = 0; j < 3; j++) {
            const mmrt_op *op = &program->ops[i];
            if (has_role(op, j, TABLE) && mmrt_row_bytes(&program->weights[op->weights[j]]) > bytes)
                bytes = mmrt_row_bytes(&program->weights[op->weights[j]]);
        }
    units->row_scratch_bytes = mmrt_source_read_scratch(bytes);
    const size_t all = (size_t)program->n_threads * units->row_scratch_bytes;
    void *at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for rows of weights");
    madvise(at, all, MADV_WIPEONFORK); /* the disk writes to it: a child must not share its pages */
    units->row_scratch = at;
    return MMRT_OK;
}

mmrt_status mmrt_program_stream(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                                mmrt_error *err) {
    if (!program->memory || program->units)
        return mmrt_fail(err, MMRT_ARGUMENT, "a finished program is made to stream once");
    program->units = calloc(1, sizeof *program->units);
    if (!program->units)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    struct list list = {0};
    int32_t n_in_order = 0;
    mmrt_status status = divide(program, files, n_files, &list, &n_in_order, err);
    if (!status)
        status = make_row_scratch(program, err);
    struct mmrt_bank *banks = status ? NULL : mmrt_banks_of(program);
    if (!status && !banks)
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    if (!status)
        status = mmrt_source_create(files, n_files, list.at, list.n, n_in_order, banks,
                                    program->units->n_experts, &program->units->source, err);
    if (!status)
        status = mmrt_columns_make(program, files, n_files, err);
    free(banks);
    free(list.at);
    if (status)
        mmrt_units_free(program);
    return status;
}
