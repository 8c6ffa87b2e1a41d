/* A program whose weights may be streamed: its matrices as units of whole rows, in the order in
 * which a step reads them. */
#define _GNU_SOURCE
#include "exec/program.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Of a unit: large enough to bring a disk to its speed, small enough that few in flight do so. Two
 * pages less than a huge one, for reads are aligned. */
enum { UNIT_BYTES = (2 << 20) - 8192 };

/* ---- which units there are ---- */

/* Rows that a unit of this weight has: whole pieces, and about the same in each unit. */
static uint64_t rows_of_units(const mmrt_weight *w, uint64_t piece) {
    uint64_t most = UNIT_BYTES / row_bytes(w) / piece * piece;
    if (most < piece)
        most = piece;
    const uint64_t n = (w->rows + most - 1) / most;
    return (w->rows + n * piece - 1) / (n * piece) * piece;
}

/* How many operations multiply by each weight. */
static void count_uses(const mmrt_program *program, int32_t *uses) {
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        if (op->kind == MMRT_OP_LINEAR || op->kind == MMRT_OP_GLU || op->kind == MMRT_OP_LOGITS)
            for (int j = 0; j < 3; j++)
                if (op->weights[j] >= 0)
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

struct units {
    struct mmrt_unit *at;
    int32_t n;
    int32_t room;
};

static bool add_unit(struct units *units, const mmrt_weight *w, const struct place *place,
                     uint64_t first) {
    if (units->n == units->room) {
        const int32_t room = units->room ? 2 * units->room : 256;
        void *grown = realloc(units->at, (size_t)room * sizeof *units->at);
        if (!grown)
            return false;
        units->at = grown;
        units->room = room;
    }
    const uint64_t left = w->rows - first, rows = left < place->unit_rows ? left : place->unit_rows;
    units->at[units->n++] = (struct mmrt_unit){
        .file = place->file,
        .rows = (uint32_t)rows,
        .offset = place->offset + first * row_bytes(w),
        .bytes = rows * row_bytes(w),
    };
    return true;
}

/* The units of an operation, in the order in which its rows are taken: one weight after another,
 * but gate and up side by side. A weight's own units need not follow one another, so each notes
 * where it is. */
static bool add_units_of(mmrt_program *program, const mmrt_op *op, struct units *units) {
    const bool side_by_side = op->kind == MMRT_OP_GLU;
    uint64_t next[3] = {0};
    for (;;) {
        int chosen = -1;
        for (int i = 0; i < 3 && op->weights[i] >= 0; i++) {
            const struct place *place = &program->places[op->weights[i]];
            if (!place->units || next[i] >= program->weights[op->weights[i]].rows)
                continue;
            if (chosen < 0 || (side_by_side && next[i] < next[chosen]))
                chosen = i;
        }
        if (chosen < 0)
            return true;
        const int32_t weight = op->weights[chosen];
        struct place *place = &program->places[weight];
        place->units[next[chosen] / place->unit_rows] = units->n;
        if (!add_unit(units, &program->weights[weight], place, next[chosen]))
            return false;
        next[chosen] += place->unit_rows;
    }
}

/* A weight that several operations multiply by has no units, and so is kept. */
static mmrt_status find_places(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                               const int32_t *uses, mmrt_error *err) {
    for (int32_t i = 0; i < program->n_weights; i++) {
        const mmrt_status status =
            find_file(&program->weights[i], files, n_files, &program->places[i], err);
        if (status)
            return status;
    }
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        for (int j = 0; j < 3; j++) {
            if (op->weights[j] < 0 || uses[op->weights[j]] != 1 || op->kind == MMRT_OP_EMBED ||
                op->kind == MMRT_OP_NORM || op->kind == MMRT_OP_ROPE)
                continue;
            const mmrt_weight *w = &program->weights[op->weights[j]];
            struct place *place = &program->places[op->weights[j]];
            place->unit_rows = rows_of_units(w, mmrt_piece_rows(program, op, j));
            place->n_units = (int32_t)((w->rows + place->unit_rows - 1) / place->unit_rows);
            place->units = malloc((size_t)place->n_units * sizeof *place->units);
            if (!place->units)
                return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
        }
    }
    return MMRT_OK;
}

static mmrt_status divide(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                          struct units *units, mmrt_error *err) {
    int32_t *uses = calloc((size_t)program->n_weights, sizeof *uses);
    program->places = calloc((size_t)program->n_weights, sizeof *program->places);
    program->op_units = calloc((size_t)program->n_ops, sizeof *program->op_units);
    program->in_order = calloc((size_t)program->n_ops, sizeof *program->in_order);
    mmrt_status status = MMRT_OK;
    if (!uses || !program->places || !program->op_units || !program->in_order) {
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    } else {
        count_uses(program, uses);
        status = find_places(program, files, n_files, uses, err);
    }
    free(uses);
    for (int32_t i = 0; !status && i < program->n_ops; i++) {
        program->op_units[i][0] = units->n;
        if (program->ops[i].kind != MMRT_OP_EMBED &&
            !add_units_of(program, &program->ops[i], units))
            status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
        program->op_units[i][1] = units->n;
    }
    return status;
}

void mmrt_streamed_free(mmrt_program *program) {
    mmrt_stream_free(program->stream);
    for (int32_t i = 0; program->places && i < program->n_weights; i++)
        free(program->places[i].units);
    free(program->places);
    free(program->op_units);
    free(program->in_order);
    if (program->row_scratch)
        munmap(program->row_scratch, (size_t)program->n_threads * program->row_scratch_bytes);
    program->stream = NULL;
    program->places = NULL;
    program->op_units = NULL;
    program->in_order = NULL;
    program->row_scratch = NULL;
}

/* EMBED reads single rows: each thread has room for one. */
static mmrt_status make_row_scratch(mmrt_program *program, mmrt_error *err) {
    uint64_t bytes = 0;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        if (op->kind == MMRT_OP_EMBED && row_bytes(&program->weights[op->weights[0]]) > bytes)
            bytes = row_bytes(&program->weights[op->weights[0]]);
    }
    program->row_scratch_bytes = mmrt_stream_read_scratch(bytes);
    const size_t all = (size_t)program->n_threads * program->row_scratch_bytes;
    void *at = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for rows of weights");
    madvise(at, all, MADV_WIPEONFORK); /* the disk writes to it: a child must not share its pages */
    program->row_scratch = at;
    return MMRT_OK;
}

mmrt_status mmrt_program_stream(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                                mmrt_error *err) {
    if (!program->memory || program->stream)
        return mmrt_fail(err, MMRT_ARGUMENT, "a finished program is made to stream once");
    struct units units = {0};
    mmrt_status status = divide(program, files, n_files, &units, err);
    if (!status)
        status = make_row_scratch(program, err);
    if (!status)
        status = mmrt_stream_create(files, n_files, units.at, units.n, &program->stream, err);
    free(units.at);
    if (status)
        mmrt_streamed_free(program);
    return status;
}

/* ---- the plan ---- */

static mmrt_status require_stream(const mmrt_program *program, mmrt_error *err) {
    return program->stream
               ? MMRT_OK
               : mmrt_fail(err, MMRT_ARGUMENT, "this program's weights are not streamed");
}

mmrt_status mmrt_program_set_reader(mmrt_program *program, mmrt_reader reader, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    return status ? status : mmrt_stream_set_reader(program->stream, reader, err);
}

mmrt_status mmrt_program_set_budget(mmrt_program *program, uint64_t budget, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    return status ? status : mmrt_stream_set_budget(program->stream, budget, err);
}

mmrt_status mmrt_program_lock_kept(mmrt_program *program, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (!status)
        mmrt_stream_lock_kept(program->stream);
    return status;
}

/* Kept whatever the budget is: what has no units, but embeddings that are read by rows alone. */
static uint64_t rest_bytes(const mmrt_program *program) {
    uint64_t bytes = 0;
    for (int32_t i = 0; i < program->n_weights; i++)
        if (!program->places[i].units)
            bytes += program->weights[i].rows * row_bytes(&program->weights[i]);
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        if (op->kind == MMRT_OP_EMBED && !program->places[op->weights[0]].units)
            bytes -= program->weights[op->weights[0]].rows *
                     row_bytes(&program->weights[op->weights[0]]);
    }
    return bytes;
}

mmrt_status mmrt_program_plan(const mmrt_program *program, uint64_t budget, mmrt_plan *plan,
                              uint64_t *kept, mmrt_error *err) {
    mmrt_status status = require_stream(program, err);
    if (status)
        return status;
    status = mmrt_stream_plan(program->stream, budget, plan, err);
    plan->rest = rest_bytes(program);
    if (!kept)
        return status;
    const int32_t n = mmrt_stream_units(program->stream);
    bool *is_kept = calloc((size_t)n + 1, sizeof *is_kept);
    if (!is_kept)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a plan");
    mmrt_stream_kept(program->stream, budget, is_kept);
    for (int32_t i = 0; i < program->n_weights; i++) {
        const struct place *place = &program->places[i];
        const mmrt_weight *w = &program->weights[i];
        kept[i] = 0;
        for (int32_t j = 0; j < place->n_units; j++) {
            const uint64_t first = (uint64_t)j * place->unit_rows, left = w->rows - first;
            if (is_kept[place->units[j]])
                kept[i] += (left < place->unit_rows ? left : place->unit_rows) * row_bytes(w);
        }
    }
    free(is_kept);
    return status;
}

void mmrt_program_stream_stats(const mmrt_program *program, mmrt_stream_stats *stats) {
    memset(stats, 0, sizeof *stats);
    if (program->stream)
        mmrt_stream_get_stats(program->stream, stats);
}

/* ---- a step ---- */

mmrt_status mmrt_streamed_begin(const mmrt_program *program, mmrt_error *err) {
    mmrt_status status = mmrt_stream_begin(program->stream, err);
    for (int32_t i = 0; !status && i < program->n_ops; i++)
        program->in_order[i] =
            !mmrt_stream_is_kept(program->stream, program->op_units[i][0], program->op_units[i][1]);
    return status;
}

bool mmrt_next_in_order(struct worker *w, uint64_t *piece) {
    struct step *step = w->step;
    const uint64_t number = (uint64_t)(w->op - step->program->ops) + 1;
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

static void end_step(struct worker *w) {
    end_after(w->step, (int32_t)(w->op - w->step->program->ops));
}

const uint8_t *mmrt_streamed_rows(struct worker *w, int32_t index, uint64_t first) {
    const mmrt_program *program = w->step->program;
    const struct place *place = &program->places[index];
    const mmrt_weight *weight = &program->weights[index];
    if (!place->units)
        return (const uint8_t *)weight->data + first * row_bytes(weight);
    const int32_t unit = place->units[first / place->unit_rows];
    while (w->thread || !w->step->forked) {
        bool ended;
        const uint8_t *at =
            mmrt_stream_acquire(program->stream, unit, w->thread ? -1 : MMRT_POLL_SECONDS, &ended);
        if (at)
            return at + first % place->unit_rows * row_bytes(weight);
        if (ended) {
            end_step(w);
            return NULL;
        }
        mmrt_poll_caller(w, (int32_t)(w->op - program->ops));
    }
    return NULL;
}

void mmrt_streamed_rows_done(const struct worker *w, int32_t index, uint64_t first, uint64_t end) {
    const struct place *place = &w->step->program->places[index];
    if (place->units)
        mmrt_stream_release(w->step->program->stream, place->units[first / place->unit_rows],
                            (uint32_t)(end - first));
}

const uint8_t *mmrt_row_at(struct worker *w, int32_t index, uint64_t row) {
    const mmrt_program *program = w->step->program;
    const mmrt_weight *weight = &program->weights[index];
    const size_t bytes = row_bytes(weight);
    const uint8_t *mapped = (const uint8_t *)weight->data + row * bytes;
    if (!program->stream)
        return mapped;
    const struct place *place = &program->places[index];
    if (place->units) {
        const int32_t unit = place->units[row / place->unit_rows];
        if (mmrt_stream_is_kept(program->stream, unit, unit + 1))
            return mapped;
    }
    const uint8_t *at =
        mmrt_stream_read(program->stream, place->file, place->offset + row * bytes, bytes,
                         program->row_scratch + (size_t)w->thread * program->row_scratch_bytes);
    if (!at)
        end_step(w);
    return at;
}
