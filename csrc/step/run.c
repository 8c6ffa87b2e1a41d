/* Running a step on all threads. */
#include "step/parts.h"
#include "step/rows.h"

#include "base/pool.h"
#include "base/status.h"
#include "map/guard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* Cosines and sines of this step's positions, in double: float32 angles are wrong by a thousandth
 * at position 10000. */
static void fill_ropes(const struct step *step, int thread, int n_threads) {
    for (int32_t i = 0; i < step->program->n_ropes; i++) {
        const struct rope *rope = &step->program->ropes[i];
        const struct part *part = step->parts;
        for (uint32_t t = (uint32_t)thread; t < step->n; t += (uint32_t)n_threads) {
            float *row = rope->table + (size_t)t * rope->n_pairs * 2;
            part = part_from(part, t);
            for (uint32_t p = 0; p < rope->n_pairs; p++) {
                const double angle = (double)position_of(part, t) * rope->frequencies[p];
                row[2 * p] = rope->magnitude * (float)cos(angle);
                row[2 * p + 1] = rope->magnitude * (float)sin(angle);
            }
        }
    }
}

/* Sets up what every operation but the first, EMBED or TAKE, needs: the barrier after it makes that
 * visible to all threads. Not done before the job, as another caller's job may still run then. */
static void prepare(const struct step *step, int thread, int n_threads) {
    fill_ropes(step, thread, n_threads);
    for (int32_t i = thread; i < step->program->n_buffers; i += n_threads)
        step->program->buffers[i].columns.last =
            (size_t)step->n * step->program->buffers[i].per_token - 1;
}

static void take(mmrt_mark *mark) {
    struct timespec t;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    clock_gettime(CLOCK_MONOTONIC, &t);
    mark->ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    mark->minor_faults = usage.ru_minflt;
    mark->major_faults = usage.ru_majflt;
    mark->read_bytes = (int64_t)usage.ru_inblock * 512;
}

/* By now other threads may have left this operation, but not the next one. */
static bool poll_from_barrier(void *worker) {
    mmrt_poll_caller(worker, number_of(worker) + 1);
    return !((struct worker *)worker)->step->forked;
}

/* Thread 0 polls: between operations, and while it waits for a thread that may wait for the disk.
 * False: it is alone now, in a child. */
static bool end_op(struct worker *w) {
    const struct step *step = w->step;
    if (w->thread) {
        mmrt_pool_barrier(step->pool);
        return true;
    }
    if (!step->forked && mmrt_step_seconds() - w->polled > MMRT_POLL_SECONDS)
        mmrt_poll_caller(w, number_of(w));
    if (step->forked)
        return false;
    if (w->in_order)
        mmrt_pool_barrier_polling(step->pool, MMRT_POLL_SECONDS, poll_from_barrier, w);
    else
        mmrt_pool_barrier(step->pool);
    return !step->forked;
}

static void step_job(void *context, int thread, int n_threads) {
    struct step *step = context;
    const mmrt_program *program = step->program;
    struct worker w = {.step = step, .thread = thread, .n_threads = n_threads};
    w.scratch = program->thread_scratch + (size_t)thread * program->thread_bytes;
    w.polled = mmrt_step_seconds();
    int32_t mark = thread ? step->n_marks : 0; /* the next to take */
    if (mark < step->n_marks && step->marks[mark].op < 0)
        take(&step->marks[mark++]);
    prepare(step, thread, n_threads);
    for (int32_t i = 0; i < program->n_ops; i++) {
        w.op = &program->ops[i];
        w.runs = step->runs + (i % 2) * n_threads;
        w.in_order = program->units && program->units->in_order[i];
        if (!w.op->outputs_only || step->first_output < step->n)
            mmrt_op_info(w.op->kind)->run(&w);
        else if (!thread && program->units)
            mmrt_rows_skip(&w);
        if (!end_op(&w))
            return;
        if (mark < step->n_marks && step->marks[mark].op == i)
            take(&step->marks[mark++]);
        /* Thread 0 may already be past the next operation: only its number tells all alike. */
        if (atomic_load_explicit(&step->last_op, memory_order_relaxed) <= i)
            return;
    }
}

/* Steps this short keep their scratch. */
enum { FEW_TOKENS = 8 };

static mmrt_status run_step(struct step *step, mmrt_error *err) {
    const mmrt_program *program = step->program;
    mmrt_source *source = source_of(program);
    mmrt_status status = source ? mmrt_rows_begin(program, step->n, err) : MMRT_OK;
    if (status)
        return status;
    status = mmrt_pool_run(step->pool, step_job, step, err);
    if (step->forked) /* the stream is the parent's, who is in this pass */
        return atomic_load(&step->interrupted)
                   ? mmrt_fail(err, MMRT_INTERRUPTED, "interrupted")
                   : mmrt_fail(err, MMRT_UNSUPPORTED,
                               "a signal handler forked amid a step, which goes on in the parent: "
                               "in the child the text is as it was before");
    const bool ended_early = atomic_load(&step->last_op) != INT32_MAX;
    if (!status && atomic_load(&step->interrupted))
        status = mmrt_fail(err, MMRT_INTERRUPTED, "interrupted");
    else if (!status && ended_early)
        status = mmrt_units_error(program, err);
    if (source) {
        if (step->n > FEW_TOKENS && mmrt_source_is_limited(source)) /* weights need the room */
            mmrt_program_release_scratch(program);
        mmrt_source_end(source, !status);
    }
    return status;
}

/* The counters that threads share in a step. */
static mmrt_status make_counters(struct step *step, mmrt_error *err) {
    const size_t n_runs = 2 * (size_t)mmrt_pool_threads(step->pool);
    const size_t bytes =
        n_runs * sizeof *step->runs + step->program->n_counters * sizeof *step->counters;
    const size_t align = _Alignof(struct mmrt_run), room = (bytes + align - 1) / align * align;
    step->runs = aligned_alloc(align, room);
    if (!step->runs)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a step");
    memset(step->runs, 0, room);
    step->counters = (atomic_uint *)(step->runs + n_runs);
    return MMRT_OK;
}

/* IO, naming the tensor, if a weight's file has lost some of it. */
static mmrt_status check_weights(const mmrt_program *program, mmrt_error *err) {
    for (int32_t i = 0; i < program->n_spans; i++) {
        const struct span *span = &program->spans[i];
        mmrt_error lost;
        uint64_t gone;
        mmrt_status status =
            mmrt_mapping_check(span->mapping, span->start, span->end - span->start, &gone, &lost);
        if (status == MMRT_OK)
            continue;
        const char *byte = (const char *)mmrt_mapping_data(span->mapping) + gone;
        for (int32_t w = 0; w < program->n_weights; w++) {
            const mmrt_weight *weight = &program->weights[w];
            const char *data = weight->data;
            if (byte >= data && byte < data + mmrt_weight_bytes(weight))
                return mmrt_fail(err, status, "tensor %s: %s", weight->name, lost.message);
        }
        return mmrt_fail(err, status, "%s", lost.message);
    }
    return MMRT_OK;
}

mmrt_status mmrt_program_run(mmrt_program *program, mmrt_pool *pool, const mmrt_part *parts,
                             int32_t n_parts, const int32_t *tokens, const float *rows,
                             float *logits, mmrt_mark *marks, int32_t n_marks, int32_t *choices,
                             mmrt_poll_fn *poll, void *poll_context, mmrt_error *err) {
    if (!program->memory || mmrt_pool_threads(pool) > program->n_threads)
        return mmrt_fail(err, MMRT_ARGUMENT, "the program has no scratch for %d threads",
                         mmrt_pool_threads(pool));
    if (!rows != !program->taken)
        return mmrt_fail(err, MMRT_ARGUMENT, "hidden rows are for a program that begins with TAKE");
    mmrt_guard_renew();
    struct parts placed;
    mmrt_status status = mmrt_parts_begin(program, parts, n_parts, tokens, &placed, err);
    struct step step = {
        .program = program,
        .pool = pool,
        .parts = placed.parts,
        .tokens = placed.tokens,
        .n = placed.n_tokens,
        .first_output = placed.first_output,
        .rows = rows,
        .exact = placed.exact,
        .logits = logits,
        .marks = marks,
        .n_marks = n_marks,
        .choices = choices,
        .poll = poll,
        .poll_context = poll_context,
        .last_op = INT32_MAX,
    };
    if (!status)
        status = make_counters(&step, err);
    if (!status)
        status = run_step(&step, err);
    if (!status)
        status = check_weights(program, err);
    for (int32_t i = 0; !status && i < placed.n; i++)
        status = mmrt_state_check(placed.parts[i].state, err);
    if (!status && atomic_load(&step.not_finite))
        status = mmrt_fail(err, MMRT_NOT_FINITE, "a logit or a hidden row is NaN or infinite");
    mmrt_parts_end(&placed, !status);
    free(step.runs);
    return status;
}
