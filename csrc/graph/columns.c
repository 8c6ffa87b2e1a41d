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

/* Of a neuron, as far as operations need it: whole pages, as disks read them. */
static uint64_t read_bytes(const mmrt_program *program, int32_t columns) {
    enum { PAGE = 4096 };
    uint64_t most = 0;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        const struct op_info *info = mmrt_op_info(op->kind);
        for (int j = 0; info->neuron_bytes && j < 3; j++) {
            const uint64_t bytes = has_role(op, j, COLUMNS) && op->weights[j] == columns
                                       ? info->neuron_bytes(program, op)
                                       : 0;
            most = bytes > most ? bytes : most;
        }
    }
    const uint64_t all = mmrt_row_bytes(&program->weights[columns]);
    most = (most + PAGE - 1) / PAGE * PAGE;
    return most < all ? most : all;
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
                                                  read_bytes(program, op->weights[1]),
                                                  mmrt_row_bytes(columns)};
    }
    return n;
}

static void use_seldom(const mmrt_program *program, const mmrt_op *op, int i) {
    const struct place *place =
        has_role(op, i, MATRIX) ? &program->units->places[op->weights[i]] : NULL;
    for (int32_t j = 0; place && place->units && j < place->n_units; j++)
        mmrt_source_use_seldom(program->units->source, place->units[j]);
}

/* Of the operations that have a table. Other steps only use the matrices of those that read it, and
 * of those that leave that to another operation the matrix before it. */
static void note_tables(mmrt_program *program, const int32_t *by_weight) {
    struct units *units = program->units;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        units->op_columns[i] = -1;
        for (int j = 0; j < 3; j++) {
            if (!has_role(op, j, COLUMNS) || by_weight[op->weights[j]] < 0)
                continue;
            units->op_columns[i] = by_weight[op->weights[j]];
            const bool reads = mmrt_op_info(op->kind)->neuron_bytes != NULL;
            for (int k = reads ? 0 : j - 1; k < j; k++)
                use_seldom(program, op, k);
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
    /* What no step of one token uses is kept last: neurons are worth more. */
    const uint64_t left = budget > all.least ? budget - all.least : 0;
    const uint64_t often = mmrt_source_often(units->source);
    return mmrt_neurons_share(units->neurons, left, left > often ? left - often : 0);
}
