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

mmrt_status mmrt_columns_make(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                              mmrt_error *err) {
    struct units *units = program->units;
    struct mmrt_neurons_table *tables = calloc((size_t)program->n_ops, sizeof *tables);
    units->op_columns = calloc((size_t)program->n_ops, sizeof *units->op_columns);
    int32_t n = 0;
    if (!tables || !units->op_columns) {
        free(tables);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    }
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        units->op_columns[i] = -1;
        if (!has_role(op, 1, COLUMNS) || !has_kernel(program, op))
            continue;
        const mmrt_weight *columns = &program->weights[op->weights[1]];
        const struct place *place = &units->places[op->weights[1]];
        tables[n] = (struct mmrt_neurons_table){place->file, place->offset, columns->rows,
                                                mmrt_row_bytes(columns)};
        units->op_columns[i] = n++;
        mmrt_source_use_seldom(units->source, units->op_units[i][0], units->op_units[i][1]);
    }
    mmrt_status status =
        n ? mmrt_neurons_create(files, n_files, tables, n, &units->neurons, err) : MMRT_OK;
    free(tables);
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
