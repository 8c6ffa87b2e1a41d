/* One step: every thread walks the list of operations, with a barrier after each. */
#include "exec/program.h"

#include "base/pool.h"
#include "base/status.h"
#include "kv/kv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static op_fn *const functions[] = {
#define MMRT_OP(name, function, meaning) mmrt_op_##function,
#include "exec/ops.def"
#undef MMRT_OP
};

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

/* What every operation but the first, EMBED, finds ready: a barrier stands between. It is written
 * here, and not before the job, as another caller's job may still run then. */
static void prepare(const struct step *step, int thread, int n_threads) {
    fill_ropes(step, thread, n_threads);
    for (int32_t i = thread; i < step->program->n_buffers; i += n_threads)
        step->program->buffers[i].columns.last = step->n - 1;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
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

void mmrt_poll_caller(struct worker *w, int32_t last) {
    struct step *step = w->step;
    w->polled = seconds();
    if (!step->poll)
        return;
    const int process = getpid();
    const bool go_on = !step->poll(step->poll_context);
    step->forked |= getpid() != process; /* by a signal's handler */
    if (go_on && !step->forked)
        return;
    atomic_store(&step->interrupted, !go_on);
    end_after(step, last);
    if (step->program->stream && !step->forked)
        mmrt_stream_interrupt(step->program->stream);
}

static int32_t number_of(const struct worker *w) {
    return (int32_t)(w->op - w->step->program->ops);
}

/* Others may have left this operation meanwhile, but not the next one. */
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
    if (!step->forked && seconds() - w->polled > MMRT_POLL_SECONDS)
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
    w.polled = seconds();
    int32_t mark = thread ? step->n_marks : 0; /* the next to take */
    if (mark < step->n_marks && step->marks[mark].op < 0)
        take(&step->marks[mark++]);
    prepare(step, thread, n_threads);
    for (int32_t i = 0; i < program->n_ops; i++) {
        w.op = &program->ops[i];
        w.runs = step->runs + (i % 2) * n_threads;
        w.in_order = program->stream && program->in_order[i];
        functions[w.op->kind](&w);
        if (!end_op(&w))
            return;
        if (mark < step->n_marks && step->marks[mark].op == i)
            take(&step->marks[mark++]);
        /* Thread 0 may already be past the next operation: only its number tells all alike. */
        if (atomic_load_explicit(&step->last_op, memory_order_relaxed) <= i)
            return;
    }
}

/* Of a step whose scratch is not worth giving back. */
enum { FEW_TOKENS = 8 };

static mmrt_status run_step(struct step *step, mmrt_error *err) {
    const mmrt_program *program = step->program;
    mmrt_status status = program->stream ? mmrt_streamed_begin(program, err) : MMRT_OK;
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
        status = mmrt_stream_error(program->stream, err);
    if (program->stream) {
        if (step->n > FEW_TOKENS &&
            mmrt_stream_is_limited(program->stream)) /* the room is better used for weights */
            mmrt_program_rest(program);
        mmrt_stream_end(program->stream, !status);
    }
    return status;
}

/* What threads count in a step. */
static mmrt_status make_counters(struct step *step, mmrt_error *err) {
    const size_t n_runs = 2 * (size_t)mmrt_pool_threads(step->pool);
    const size_t n_heads = step->program->kv_shape.n_heads;
    const size_t bytes = n_runs * sizeof *step->runs + n_heads * sizeof *step->sections_done;
    const size_t align = _Alignof(struct mmrt_run), room = (bytes + align - 1) / align * align;
    step->runs = aligned_alloc(align, room);
    if (!step->runs)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a step");
    memset(step->runs, 0, room);
    step->sections_done = (atomic_uint *)(step->runs + n_runs);
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
            if (byte >= data && byte < data + weight->rows * row_bytes(weight))
                return mmrt_fail(err, status, "tensor %s: %s", weight->name, lost.message);
        }
        return mmrt_fail(err, status, "%s", lost.message);
    }
    return MMRT_OK;
}

/* Finds where in its text each part begins, and makes room for it. */
static mmrt_status place_parts(const mmrt_program *program, const mmrt_part *given, int32_t n_parts,
                               struct part *parts, uint32_t n, mmrt_error *err) {
    const mmrt_kv_shape b = program->kv_shape;
    uint64_t first = 0;
    for (int32_t i = 0; i < n_parts; i++) {
        mmrt_kv *kv = given[i].kv;
        const mmrt_kv_shape a = mmrt_kv_shape_of(kv);
        if (a.n_layers != b.n_layers || a.n_heads != b.n_heads || a.head_dim != b.head_dim ||
            a.k_type != b.k_type || a.v_type != b.v_type)
            return mmrt_fail(err, MMRT_ARGUMENT, "the sequence belongs to another model");
        uint64_t position = mmrt_kv_length(kv);
        for (int32_t j = 0; j < i; j++)
            position += parts[j].kv == kv ? parts[j].n : 0;
        parts[i] = (struct part){
            .kv = kv, .first = (uint32_t)first, .n = given[i].n, .position = position};
        first += given[i].n;
        if (!given[i].n || first > n || (i == n_parts - 1 && first < n))
            return mmrt_fail(err, MMRT_ARGUMENT, "the parts do not add up to %u tokens", n);
        mmrt_status status = mmrt_kv_reserve(kv, position + given[i].n, err);
        if (status)
            return status;
    }
    return MMRT_OK;
}

mmrt_status mmrt_program_run(mmrt_program *program, mmrt_pool *pool, const mmrt_part *parts,
                             int32_t n_parts, const int32_t *tokens, uint32_t n,
                             uint32_t first_output, float *logits, mmrt_mark *marks,
                             int32_t n_marks, mmrt_poll_fn *poll, void *poll_context,
                             mmrt_error *err) {
    if (!program->memory || mmrt_pool_threads(pool) > program->n_threads)
        return mmrt_fail(err, MMRT_ARGUMENT, "the program has no scratch for %d threads",
                         mmrt_pool_threads(pool));
    if (n_parts < 1)
        return mmrt_fail(err, MMRT_ARGUMENT, "a step without a text");
    if (n < 1 || n > program->max_tokens || first_output >= n)
        return mmrt_fail(err, MMRT_ARGUMENT, "a step takes 1 to %u tokens, not %u",
                         program->max_tokens, n);
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint64_t)tokens[i] >= program->vocabulary)
            return mmrt_fail(err, MMRT_ARGUMENT, "token %u: id %d is not from 0 to %llu", i,
                             tokens[i], (unsigned long long)program->vocabulary - 1);
    struct part *placed = calloc((size_t)n_parts, sizeof *placed);
    if (!placed)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a step of %d parts", n_parts);
    mmrt_guard_renew();
    mmrt_status status = place_parts(program, parts, n_parts, placed, n, err);
    struct step step = {
        .program = program,
        .pool = pool,
        .parts = placed,
        .tokens = tokens,
        .n = n,
        .first_output = first_output,
        .logits = logits,
        .marks = marks,
        .n_marks = n_marks,
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
    if (!status && atomic_load(&step.not_finite))
        status = mmrt_fail(err, MMRT_NOT_FINITE, "a logit is NaN or infinite");
    for (int32_t i = 0; i < n_parts; i++)
        if (status) /* gives reserved pages back */
            mmrt_kv_truncate(parts[i].kv, mmrt_kv_length(parts[i].kv));
        else
            mmrt_kv_set_length(placed[i].kv, placed[i].position + placed[i].n);
    free(step.runs);
    free(placed);
    return status;
}
