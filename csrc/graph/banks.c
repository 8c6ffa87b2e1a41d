#include "graph/banks.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

/* Adds the operation's stacks to those that its choices are for. */
static bool add_stacks(const mmrt_op *op, const int32_t *uses, struct experts *experts) {
    const bool first = experts->n_weights == 0;
    for (int i = 0; i < 3; i++) {
        if (!has_role(op, i, STACK))
            continue;
        if (uses[op->weights[i]] != 1 || experts->n_weights == 4)
            return false;
        experts->weights[experts->n_weights++] = op->weights[i];
    }
    if (first)
        experts->n_together = experts->n_weights;
    return true;
}

/* ROUTE begins a layer's experts: what reads the choices that it has written, up to the next that
 * writes there, belongs to them. */
static void find_layers(mmrt_program *program, const int32_t *uses) {
    struct units *units = program->units;
    int32_t choices = -1; /* of the layer at hand */
    bool open = false;    /* its experts are paged */
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        units->op_experts[i] = -1;
        if (op->out >= 0 && op->out == choices)
            choices = -1;
        if (op->choices < 0)
            continue;
        if (op->choices != choices) {
            choices = op->choices;
            open = true;
            units->experts[units->n_experts++] = (struct experts){.n_used = op->n_used};
        }
        struct experts *experts = &units->experts[units->n_experts - 1];
        if (open && !add_stacks(op, uses, experts)) {
            open = false;
            experts->n_weights = 0;
        }
        units->op_experts[i] = open ? units->n_experts - 1 : -1;
    }
}

/* Only layers that have stacks. */
static void drop_empty(mmrt_program *program) {
    struct units *units = program->units;
    int32_t n = 0;
    for (int32_t i = 0; i < units->n_experts; i++) {
        const int32_t number = units->experts[i].n_weights ? n : -1;
        for (int32_t j = 0; j < program->n_ops; j++)
            if (units->op_experts[j] == i)
                units->op_experts[j] = number;
        if (number >= 0)
            units->experts[n++] = units->experts[i];
    }
    units->n_experts = n;
}

static mmrt_status place_stack(mmrt_program *program, int32_t index, mmrt_error *err) {
    struct place *place = &program->units->places[index];
    place->unit_rows = program->weights[index].rows;
    place->n_units = (int32_t)program->weights[index].stack;
    place->units = malloc((size_t)place->n_units * sizeof *place->units);
    return place->units ? MMRT_OK : mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
}

static mmrt_status add_bank(mmrt_program *program, const struct experts *experts,
                            struct list *units, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i < experts->n_weights; i++)
        status = place_stack(program, experts->weights[i], err);
    const uint64_t n = program->weights[experts->weights[0]].stack;
    for (uint64_t expert = 0; !status && expert < n; expert++)
        for (int32_t i = 0; !status && i < experts->n_weights; i++) {
            const mmrt_weight *weight = &program->weights[experts->weights[i]];
            struct place *place = &program->units->places[experts->weights[i]];
            place->units[expert] = units->n;
            if (!mmrt_list_add(units, weight, place, expert * weight->rows))
                status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
        }
    return status;
}

/* The units that operations with stacks read. */
static void note_units(mmrt_program *program) {
    struct units *units = program->units;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const int32_t layer = units->op_experts[i];
        if (layer < 0 || !has_role(&program->ops[i], 0, STACK))
            continue;
        const struct experts *experts = &units->experts[layer];
        const struct place *first = &units->places[experts->weights[0]];
        const struct place *last = &units->places[experts->weights[experts->n_weights - 1]];
        units->op_units[i][0] = first->units[0];
        units->op_units[i][1] = last->units[last->n_units - 1] + 1;
    }
}

mmrt_status mmrt_banks_make(mmrt_program *program, const int32_t *uses, struct list *list,
                            mmrt_error *err) {
    struct units *units = program->units;
    units->experts = calloc((size_t)program->n_ops, sizeof *units->experts);
    units->op_experts = calloc((size_t)program->n_ops, sizeof *units->op_experts);
    if (!units->experts || !units->op_experts)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    find_layers(program, uses);
    drop_empty(program);
    size_t most = 0, most_used = 0;
    mmrt_status status = MMRT_OK;
    for (int32_t i = 0; !status && i < units->n_experts; i++) {
        const struct experts *experts = &units->experts[i];
        const size_t n = program->weights[experts->weights[0]].stack;
        most = n > most ? n : most;
        most_used = (size_t)experts->n_used > most_used ? (size_t)experts->n_used : most_used;
        status = add_bank(program, experts, list, err);
    }
    if (status)
        return status;
    note_units(program);
    units->wanted = malloc((most + 1) * sizeof *units->wanted);
    units->recent = malloc((MMRT_RECENT_TOKENS * most_used + 1) * sizeof *units->recent);
    return units->wanted && units->recent ? MMRT_OK
                                          : mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
}

struct mmrt_bank *mmrt_banks_of(const mmrt_program *program) {
    const struct units *units = program->units;
    struct mmrt_bank *banks = calloc((size_t)units->n_experts + 1, sizeof *banks);
    for (int32_t i = 0; banks && i < units->n_experts; i++) {
        const struct experts *experts = &units->experts[i];
        banks[i] = (struct mmrt_bank){
            .n_items = (int32_t)program->weights[experts->weights[0]].stack,
            .n_parts = experts->n_weights,
            .n_together = experts->n_together,
            .n_wanted = experts->n_used,
        };
    }
    return banks;
}
