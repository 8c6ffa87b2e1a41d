#include "ops/neurons.h"

#include "base/status.h"
#include "graph/pieces.h"
#include "kernels/multiply.h"
#include "step/rows.h"

const uint8_t **mmrt_where_neurons(const struct worker *w) {
    return (const uint8_t **)(void *)((uint8_t *)w->scratch + MMRT_MATMUL_SCRATCH);
}

static uint32_t *which(const struct worker *w, size_t n) {
    return (uint32_t *)(void *)(mmrt_where_neurons(w) + n);
}

const uint32_t *mmrt_which_neurons(const struct worker *w, size_t n) {
    return which(w, n);
}

size_t mmrt_neurons_scratch(size_t n) {
    return MMRT_MATMUL_SCRATCH + (n + 1) * (sizeof(void *) + sizeof(uint32_t));
}

size_t mmrt_find_neurons(const struct worker *w, const float *x, size_t n) {
    uint32_t *found = which(w, n);
    size_t n_found = 0;
    for (size_t i = 0; i < n; i++) {
        found[n_found] = (uint32_t)i;
        n_found += x[i] != 0;
    }
    return n_found;
}

float mmrt_times_neuron(struct worker *w, int i, const uint8_t *row, uint32_t neuron) {
    const mmrt_weight *matrix = weight_at(w->step, w->op->weights[i]);
    float y;
    mmrt_multiply(w->step->program->kernels, w->step->exact, matrix, row, 1, row,
                  columns_at(w->step, w->op->in), first_token(w), 1, &y, 1, w->scratch);
    y *= w->op->scales[i];
    if (w->op->biases[i] >= 0)
        y += ((const float *)weight_at(w->step, w->op->biases[i])->data)[neuron];
    return y;
}

uint64_t mmrt_neuron_column(const mmrt_program *program, int32_t table, uint64_t column) {
    return column * mmrt_format_find(program->weights[table].type)->bytes;
}

mmrt_status mmrt_check_neurons(const mmrt_program *program, int32_t table, uint64_t n,
                               uint64_t bytes, mmrt_error *err) {
    if (table < 0 || table >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no such weight", program->n_ops);
    const mmrt_weight *w = &program->weights[table];
    if (w->rows == n && w->stack <= 1 && mmrt_format_find(w->type)->elements == 1 &&
        mmrt_row_bytes(w) >= bytes)
        return MMRT_OK;
    return mmrt_fail(err, MMRT_FORMAT, "tensor %s: it has no room for %llu neurons of %llu bytes",
                     w->name, (unsigned long long)n, (unsigned long long)bytes);
}

/* False: the step ends with this operation. */
static bool await_rows(struct worker *w, int32_t turn) {
    struct step *step = w->step;
    bool failed;
    while (!mmrt_neurons_wait(step->program->units->neurons, turn, MMRT_POLL_SECONDS, &failed)) {
        if (failed)
            end_after(step, number_of(w));
        else if (!w->thread)
            mmrt_poll_caller(w, number_of(w));
        if ((!w->thread && step->forked) || atomic_load(&step->last_op) <= number_of(w))
            return false;
    }
    return true;
}

/* Whether the operation before this one has read what this one needs: it is still there. */
static bool were_read(const struct worker *w, int32_t table) {
    const struct mmrt_program *program = w->step->program;
    const int32_t before = number_of(w) - 1;
    return before >= 0 && program->units->op_columns[before] == table &&
           mmrt_op_info(program->ops[before].kind)->neuron_bytes;
}

bool mmrt_read_neurons(struct worker *w, size_t n, size_t n_needed) {
    const struct units *units = w->step->program->units;
    const int32_t table = units->op_columns[number_of(w)], turn = number_of(w) + 1;
    const uint32_t *needed = which(w, n);
    const bool there = were_read(w, table);
    if (!there && !w->thread) {
        if (!await_rows(w, 0))
            return false;
        mmrt_neurons_want(units->neurons, turn, table, needed, n_needed);
    }
    if (!there && !await_rows(w, turn))
        return false;
    for (size_t i = 0; i < n_needed; i++)
        mmrt_where_neurons(w)[i] = mmrt_neurons_row(units->neurons, table, needed[i]);
    return true;
}
