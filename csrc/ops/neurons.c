#include "ops/neurons.h"

#include "graph/pieces.h"
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
           has_role(&program->ops[before], 0, COLUMNS);
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
