/* The memory that a program's steps work in. */
#include "graph/program.h"

#include "base/status.h"
#include "graph/op.h"

#include <sys/mman.h>

static size_t rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* How many of a step's last columns matvec is to read. */
static size_t few_columns(const mmrt_program *program) {
    return program->exact || program->max_tokens < MMRT_FEW ? program->max_tokens : MMRT_FEW;
}

static size_t columns_of(const mmrt_program *program, const struct buffer *buffer) {
    return (size_t)program->max_tokens * buffer->per_token;
}

/* How many of its last columns matvec can read. */
static size_t few_of(const mmrt_program *program, const struct buffer *buffer) {
    return buffer->any_column ? columns_of(program, buffer) : few_columns(program);
}

static size_t buffer_bytes(const mmrt_program *program, const struct buffer *buffer) {
    const size_t n = columns_of(program, buffer), k = buffer->columns.k;
    return buffer->quantised ? mmrt_columns_bytes(n, k, few_of(program, buffer))
                             : rounded(n * k * sizeof(float));
}

static size_t rope_bytes(const mmrt_program *program, const struct rope *rope) {
    return rounded((size_t)program->max_tokens * rope->n_pairs * 2 * sizeof(float));
}

typedef size_t need_fn(const mmrt_program *program, const mmrt_op *op);

static void raise_to(size_t *most, need_fn *need, const mmrt_program *program, const mmrt_op *op) {
    const size_t needed = need ? need(program, op) : 0;
    *most = needed > *most ? needed : *most;
}

/* The most that any one operation needs, since they run one after another. */
struct needs {
    size_t thread_scratch, shared_scratch, counters;
};

static struct needs needs_of(const mmrt_program *program) {
    struct needs most = {0};
    for (int32_t i = 0; i < program->n_ops; i++) {
        const mmrt_op *op = &program->ops[i];
        const struct op_info *info = mmrt_op_info(op->kind);
        raise_to(&most.thread_scratch, info->thread_scratch, program, op);
        raise_to(&most.shared_scratch, info->shared_scratch, program, op);
        raise_to(&most.counters, info->counters, program, op);
    }
    return most;
}

/* Where buffers and tables lie from `memory` on. */
static void place(mmrt_program *program, uint8_t *memory) {
    for (int32_t i = 0; i < program->n_buffers; i++) {
        struct buffer *buffer = &program->buffers[i];
        const size_t bytes = buffer_bytes(program, buffer);
        if (buffer->quantised)
            mmrt_columns_place(&buffer->columns, columns_of(program, buffer), buffer->columns.k,
                               few_of(program, buffer), memory);
        else
            buffer->columns.x = (float *)(void *)memory;
        memory += bytes;
    }
    for (int32_t i = 0; i < program->n_ropes; i++) {
        program->ropes[i].table = (float *)(void *)memory;
        memory += rope_bytes(program, &program->ropes[i]);
    }
}

mmrt_status mmrt_program_finish(mmrt_program *program, int n_threads, mmrt_error *err) {
    if (program->memory || !program->outputs)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "a program begins with EMBED or TAKE and ends with LOGITS or GIVE, and is "
                         "finished once");
    size_t bytes = 0;
    for (int32_t i = 0; i < program->n_buffers; i++)
        bytes += buffer_bytes(program, &program->buffers[i]);
    for (int32_t i = 0; i < program->n_ropes; i++)
        bytes += rope_bytes(program, &program->ropes[i]);
    const struct needs needs = needs_of(program);
    const size_t token_bytes = bytes, shared = rounded(needs.shared_scratch);
    const size_t thread_bytes = rounded(needs.thread_scratch);
    bytes += shared + (size_t)n_threads * thread_bytes;
    /* Zeroes, which take memory only as far as steps touch them: see release_scratch. */
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %zu bytes of scratch", bytes);
    place(program, memory);
    program->memory = memory;
    program->memory_bytes = bytes;
    program->token_bytes = token_bytes;
    program->shared = memory + token_bytes;
    program->thread_scratch = program->shared + shared;
    program->thread_bytes = thread_bytes;
    program->n_counters = needs.counters;
    program->n_threads = n_threads;
    return MMRT_OK;
}

uint64_t mmrt_program_scratch_bytes(const mmrt_program *program, uint32_t n) {
    const uint64_t tokens = program->token_bytes;
    const uint64_t others = program->memory_bytes - tokens;
    return others + (n < program->max_tokens ? tokens * n / program->max_tokens : tokens);
}

void mmrt_program_release_scratch(const mmrt_program *program) {
    madvise(program->memory, program->memory_bytes, MADV_DONTNEED);
}
