/* What of a program's weights a budget keeps. */
#include "graph/columns.h"
#include "graph/pieces.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static mmrt_status require_stream(const mmrt_program *program, mmrt_error *err) {
    return program->units
               ? MMRT_OK
               : mmrt_fail(err, MMRT_ARGUMENT, "this program's weights are not streamed");
}

mmrt_status mmrt_program_set_reader(mmrt_program *program, mmrt_reader reader, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (!status)
        status = mmrt_source_set_reader(source_of(program), reader, err);
    if (!status && program->units->neurons)
        mmrt_neurons_set_reader(program->units->neurons, reader);
    return status;
}

/* At once, before their room is given to others. */
static mmrt_status shrink_columns(const mmrt_program *program, uint64_t bytes, mmrt_error *err) {
    mmrt_source_hold(source_of(program));
    mmrt_neurons_set_room(program->units->neurons, bytes);
    const mmrt_status status = mmrt_neurons_begin(program->units->neurons, err);
    mmrt_source_let_go(source_of(program));
    return status;
}

/* Whether the weight is read by single rows alone, past the page cache. */
static bool is_table_alone(const mmrt_program *program, const mmrt_op *op, int i) {
    return has_role(op, i, TABLE) && !program->units->places[op->weights[i]].units;
}

/* From the next pass on rows of tables are read past the page cache, and leave nothing there. */
static void leave_tables_on_disk(const mmrt_program *program) {
    struct units *units = program->units;
    mmrt_source_hold(units->source);
    for (int32_t i = 0; !units->reads_rows && i < program->n_ops; i++)
        for (int j = 0; j < 3; j++) {
            const int32_t weight = program->ops[i].weights[j];
            if (is_table_alone(program, &program->ops[i], j))
                mmrt_source_drop(units->source, units->places[weight].file,
                                 units->places[weight].offset,
                                 mmrt_weight_bytes(&program->weights[weight]));
        }
    units->reads_rows = true;
    mmrt_source_let_go(units->source);
}

mmrt_status mmrt_program_set_budget(mmrt_program *program, uint64_t budget, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (status)
        return status;
    const uint64_t columns = mmrt_columns_share(program, budget);
    mmrt_plan least;
    mmrt_source_plan(source_of(program), 0, &least, NULL);
    if (columns && budget < columns + least.least)
        return mmrt_fail(err, MMRT_NO_MEMORY,
                         "%llu bytes for weights are too few: the least is %llu",
                         (unsigned long long)budget, (unsigned long long)(columns + least.least));
    mmrt_neurons *neurons = program->units->neurons;
    const bool shrinks = neurons && columns < mmrt_neurons_room(neurons);
    if (shrinks)
        status = shrink_columns(program, columns, err);
    if (!status)
        status = mmrt_source_set_budget(source_of(program), budget - columns, err);
    if (!status)
        leave_tables_on_disk(program);
    if (!status && neurons && !shrinks)
        mmrt_neurons_set_room(neurons, columns);
    return status;
}

mmrt_status mmrt_program_forget_columns(mmrt_program *program, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (status || !program->units->neurons)
        return status;
    mmrt_source_hold(source_of(program));
    mmrt_neurons_forget(program->units->neurons);
    mmrt_source_let_go(source_of(program));
    return MMRT_OK;
}

mmrt_status mmrt_program_lock_kept(mmrt_program *program, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (!status)
        mmrt_source_lock_kept(source_of(program));
    return status;
}

mmrt_status mmrt_program_set_policy(mmrt_program *program, mmrt_policy policy, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (!status)
        mmrt_source_set_policy(source_of(program), policy);
    return status;
}

/* By rows alone, or by columns: by whatever number of operations. */
static bool is_read_in_parts(const mmrt_program *program, int32_t weight) {
    for (int32_t i = 0; i < program->n_ops; i++)
        for (int j = 0; j < 3; j++)
            if (program->ops[i].weights[j] == weight &&
                (has_role(&program->ops[i], j, TABLE) || has_role(&program->ops[i], j, COLUMNS)))
                return true;
    return false;
}

/* Kept whatever the budget is: what has no units, but for what is read in parts. */
static uint64_t rest_bytes(const mmrt_program *program) {
    uint64_t bytes = 0;
    for (int32_t i = 0; i < program->n_weights; i++)
        if (!program->units->places[i].units && !is_read_in_parts(program, i))
            bytes += mmrt_weight_bytes(&program->weights[i]);
    return bytes;
}

mmrt_status mmrt_program_plan(const mmrt_program *program, uint64_t budget, mmrt_plan *plan,
                              uint64_t *kept, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (status)
        return status;
    const uint64_t columns = mmrt_columns_share(program, budget);
    const uint64_t left = budget > columns ? budget - columns : 0;
    status = mmrt_source_plan(source_of(program), left, plan, err);
    plan->rest = rest_bytes(program);
    plan->least += mmrt_columns_least(program);
    plan->columns = columns;
    if (!kept)
        return status;
    const int32_t n = mmrt_source_units(source_of(program));
    bool *is_kept = calloc((size_t)n + 1, sizeof *is_kept);
    if (!is_kept)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    mmrt_source_kept(source_of(program), left, is_kept);
    for (int32_t i = 0; i < program->n_weights; i++) {
        const struct place *place = &program->units->places[i];
        const mmrt_weight *w = &program->weights[i];
        kept[i] = 0;
        for (int32_t j = 0; j < place->n_units; j++) {
            const uint64_t first = (uint64_t)j * place->unit_rows;
            const uint64_t left = mmrt_all_rows(w) - first;
            if (is_kept[place->units[j]])
                kept[i] += (left < place->unit_rows ? left : place->unit_rows) * mmrt_row_bytes(w);
        }
    }
    free(is_kept);
    return status;
}

void mmrt_program_stream_stats(const mmrt_program *program, mmrt_stream_stats *stats) {
    memset(stats, 0, sizeof *stats);
    if (!source_of(program))
        return;
    mmrt_source_get_stats(source_of(program), stats);
    if (!program->units->neurons)
        return;
    mmrt_neurons_get_stats(program->units->neurons, &stats->columns);
    stats->read_bytes += stats->columns.read_bytes;
    stats->stall_seconds += stats->columns.stall_seconds;
    stats->busy_seconds += stats->columns.stall_seconds;
}

int32_t mmrt_program_banks(const mmrt_program *program) {
    return program->units ? program->units->n_experts : 0;
}

void mmrt_program_bank_stats(const mmrt_program *program, int32_t bank, int32_t *weight,
                             mmrt_demand_stats *stats) {
    *weight = program->units->experts[bank].weights[0];
    mmrt_source_bank_stats(source_of(program), bank, stats);
}

/* Why columns did not come, naming table and column; OK: they did. */
static mmrt_status columns_error(const mmrt_program *program, mmrt_error *err) {
    const struct units *units = program->units;
    mmrt_error found;
    int32_t table;
    uint32_t row;
    const mmrt_status status =
        units->neurons ? mmrt_neurons_error(units->neurons, &table, &row, &found) : MMRT_OK;
    if (!status)
        return MMRT_OK;
    mmrt_fail(err, status, "%s", found.message);
    for (int32_t i = 0; table >= 0 && i < program->n_ops; i++)
        for (int j = 0; j < 3 && units->op_columns[i] == table; j++)
            if (has_role(&program->ops[i], j, COLUMNS))
                mmrt_fail(err, status, "tensor %s, neuron %u: %s",
                          program->weights[program->ops[i].weights[j]].name, row, found.message);
    if (err)
        err->os_errno = found.os_errno;
    return status;
}

mmrt_status mmrt_units_error(const mmrt_program *program, mmrt_error *err) {
    const mmrt_status of_columns = columns_error(program, err);
    if (of_columns)
        return of_columns;
    mmrt_error found;
    const mmrt_status status = mmrt_source_error(source_of(program), &found);
    const int32_t unit = mmrt_source_failed_unit(source_of(program));
    mmrt_fail(err, status, "%s", found.message);
    for (int32_t i = 0; unit >= 0 && i < program->n_weights; i++) {
        const struct place *place = &program->units->places[i];
        const mmrt_weight *w = &program->weights[i];
        for (int32_t j = 0; place->units && j < place->n_units; j++)
            if (place->units[j] == unit && w->stack > 1)
                mmrt_fail(err, status, "tensor %s, expert %d: %s", w->name, j, found.message);
            else if (place->units[j] == unit)
                mmrt_fail(err, status, "tensor %s: %s", w->name, found.message);
    }
    if (err)
        err->os_errno = found.os_errno;
    return status;
}
