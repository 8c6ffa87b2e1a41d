#include "graph/columns.h"

#include "base/status.h"
#include "graph/pieces.h"

#include <stdlib.h>

/* Whether a kernel multiplies by columns of the operation's matrix. */
static bool has_kernel(const mmrt_program *program, const mmrt_op *op) {
    const mmrt_weight *w = &program->weights[op->weights[0]];
    return program->kernels->by_columns[w->type] && w->rows % MMRT_BY_COLUMNS == 0 &&
           w->cols % MMRT_BY_COLUMNS == 0;
}

/* The tables of matrices that are there by columns; by_weight: their numbers. */
static int32_t find_tables(const mmrt_program *program, struct mmrt_neurons_table *tables,
                           int32_t *by_weight) {
    int32_t n = 0;
    for (int32_t i = 0; i < program->n_weights; i++)
        by_weight[i] = -1;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        if (!has_role(op, 0, MATRIX) || !has_role(op, 1, COLUMNS) || !has_kernel(program, op))
            continue;
        const mmrt_weight *columns = &program->weights[op->weights[1]];
        const struct place *place = &program->units->places[op->weights[1]];
        by_weight[op->weights[1]] = n;
        tables[n++] = (struct mmrt_neurons_table){place->file, place->offset, columns->rows,
                                                  mmrt_row_bytes(columns)};
    }
    return n;
}

/* Of the operations that read from a table; the matrix before it is used by other steps only. */
static void note_tables(mmrt_program *program, const int32_t *by_weight) {
    struct units *units = program->units;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        units->op_columns[i] = -1;
        for (int j = 0; j < 3; j++) {
            if (!has_role(op, j, COLUMNS) || by_weight[op->weights[j]] < 0)
                continue;
            units->op_columns[i] = by_weight[op->weights[j]];
            const struct place *place = j ? &units->places[op->weights[j - 1]] : NULL;
            for (int32_t k = 0; place && place->units && k < place->n_units; k++)
                mmrt_source_use_seldom(units->source, place->units[k]);
        }
    }
}

mmrt_status mmrt_columns_make(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                              mmrt_error *err) {
    struct units *units = program->units;
    struct mmrt_neurons_table *tables = calloc((size_t)program->n_ops, sizeof *tables);
    int32_t *by_weight = calloc((size_t)program->n_weights, sizeof *by_weight);
    units->op_columns = calloc((size_t)program->n_ops, sizeof *units->op_columns);
    mmrt_status status = MMRT_OK;
    if (!tables || !by_weight || !units->op_columns) {
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    } else {
        const int32_t n = find_tables(program, tables, by_weight);
        note_tables(program, by_weight);
        mmrt_source_keep_last(units->source);
        if (n)
            status = mmrt_neurons_create(files, n_files, tables, n, &units->neurons, err);
    }
    free(tables);
    free(by_weight);
    return status;
}

uint64_t mmrt_columns_least(const mmrt_program *program) {
    const mmrt_neurons *neurons = program->units->neurons;
    return neurons ? mmrt_neurons_least(neurons) : 0;
}

uint64_t mmrt_columns_share(const mmrt_program *program, uint64_t budget) {
    const struct units *units = program->units;
    mmrt_plan all;
    if (!units->neurons)
        return 0;
    mmrt_source_plan(units->source, 0, &all, NULL);
    if (budget >= all.most)
        return 0;
    return mmrt_neurons_share(units->neurons, budget > all.least ? budget - all.least : 0);
}
