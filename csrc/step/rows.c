#include "step/rows.h"

bool mmrt_reads_columns(const mmrt_program *program, int32_t op, uint32_t n) {
    const struct units *units = program->units;
    return n == 1 && units && units->op_columns[op] >= 0 && mmrt_neurons_are_read(units->neurons);
}

/* In the source's pass. */
static mmrt_status begin_columns(const struct units *units, uint32_t n, mmrt_error *err) {
    const mmrt_status status = mmrt_neurons_begin(units->neurons, err);
    if (status)
        mmrt_source_end(units->source, false);
    else
        mmrt_source_uses(units->source, n > 1 || !mmrt_neurons_are_read(units->neurons));
    return status;
}

mmrt_status mmrt_rows_begin(const mmrt_program *program, uint32_t n, mmrt_error *err) {
    const struct units *units = program->units;
    mmrt_status status = mmrt_source_begin(units->source, err);
    if (!status && units->neurons)
        status = begin_columns(units, n, err);
    for (int32_t i = 0; !status && i < program->n_ops; i++)
        units->in_order[i] =
            !mmrt_source_is_kept(units->source, units->op_units[i][0], units->op_units[i][1]);
    return status;
}

void mmrt_rows_skip(const struct worker *w) {
    const struct units *units = w->step->program->units;
    const int32_t *range = units->op_units[number_of(w)];
    mmrt_source_skip(units->source, range[0], range[1]);
}

bool mmrt_next_in_order(struct worker *w, uint64_t *piece) {
    struct step *step = w->step;
    const uint64_t number = (uint64_t)number_of(w) + 1;
    uint64_t value = atomic_load_explicit(&step->next, memory_order_relaxed);
    do { /* of another operation's number: this is the first piece */
        *piece = value >> 32 == number ? (uint32_t)value : 0;
        if (*piece >= w->n_pieces)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&step->next, &value,
                                                    number << 32 | (*piece + 1),
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

const uint8_t *mmrt_streamed_rows(struct worker *w, int32_t index, uint64_t first) {
    const mmrt_program *program = w->step->program;
    const struct place *place = &program->units->places[index];
    const mmrt_weight *weight = &program->weights[index];
    if (!place->units)
        return (const uint8_t *)weight->data + first * mmrt_row_bytes(weight);
    const int32_t unit = place->units[first / place->unit_rows];
    while (w->thread || !w->step->forked) {
        bool ended;
        const uint8_t *at = mmrt_source_acquire(program->units->source, unit,
                                                w->thread ? -1 : MMRT_POLL_SECONDS, &ended);
        if (at)
            return at + first % place->unit_rows * mmrt_row_bytes(weight);
        if (ended) {
            end_after(w->step, number_of(w));
            return NULL;
        }
        mmrt_poll_caller(w, number_of(w));
    }
    return NULL;
}

void mmrt_streamed_rows_done(const struct worker *w, int32_t index, uint64_t first, uint64_t end) {
    const struct place *place = &w->step->program->units->places[index];
    if (place->units)
        mmrt_source_release(w->step->program->units->source, place->units[first / place->unit_rows],
                            (uint32_t)(end - first));
}

const uint8_t *mmrt_row_at(struct worker *w, int32_t index, uint64_t row) {
    const mmrt_program *program = w->step->program;
    const mmrt_weight *weight = &program->weights[index];
    const size_t bytes = mmrt_row_bytes(weight);
    const uint8_t *mapped = (const uint8_t *)weight->data + row * bytes;
    if (!program->units || !program->units->reads_rows)
        return mapped;
    const struct place *place = &program->units->places[index];
    if (place->units) {
        const int32_t unit = place->units[row / place->unit_rows];
        if (mmrt_source_is_kept(program->units->source, unit, unit + 1))
            return mapped;
    }
    const uint8_t *at = mmrt_source_read(
        program->units->source, place->file, place->offset + row * bytes, bytes,
        program->units->row_scratch + (size_t)w->thread * program->units->row_scratch_bytes);
    if (!at)
        end_after(w->step, number_of(w));
    return at;
}
