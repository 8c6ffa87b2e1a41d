/* Building a program: every index and shape is checked here, so that a step need not. */
#include "exec/program.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* No sum of bytes overflows below these; memory ends long before. */
enum { MOST_TOKENS = 1 << 16, MOST_WIDTH = INT32_MAX };
#define MOST_OF_A_TOKEN 1e12 /* elements of its keys */

static mmrt_status check_shape(mmrt_kv_shape shape, mmrt_error *err) {
    if (!shape.n_layers || !shape.n_heads || !shape.head_dim)
        return mmrt_fail(err, MMRT_ARGUMENT, "%u layers with %u key-value heads of %u elements",
                         shape.n_layers, shape.n_heads, shape.head_dim);
    if ((double)shape.n_layers * shape.n_heads * shape.head_dim > MOST_OF_A_TOKEN)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "%u layers with %u key-value heads of %u elements do not fit into memory",
                         shape.n_layers, shape.n_heads, shape.head_dim);
    const uint32_t types[] = {shape.k_type, shape.v_type};
    for (int i = 0; i < 2; i++) {
        const struct mmrt_format *format = mmrt_format_find(types[i]);
        if (types[i] != MMRT_TYPE_F16 && types[i] != MMRT_TYPE_Q8_0)
            return mmrt_fail(err, MMRT_UNSUPPORTED,
                             "keys and values of type %s: only F16 and Q8_0 are supported",
                             format ? format->name : "unknown");
    }
    return MMRT_OK;
}

mmrt_status mmrt_program_create(mmrt_isa isa, uint32_t max_tokens, mmrt_kv_shape shape, bool exact,
                                mmrt_program **out, mmrt_error *err) {
    mmrt_status status = check_shape(shape, err);
    if (status)
        return status;
    if (max_tokens < 1 || max_tokens > MOST_TOKENS)
        return mmrt_fail(err, MMRT_ARGUMENT, "steps of %u tokens: 1 to %d are possible", max_tokens,
                         MOST_TOKENS);
    mmrt_program *program = calloc(1, sizeof *program);
    if (!program)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a program");
    program->kernels = mmrt_kernels_for(isa);
    program->max_tokens = max_tokens;
    program->exact = exact;
    program->kv_shape = shape;
    *out = program;
    return MMRT_OK;
}

void mmrt_program_free(mmrt_program *program) {
    if (!program)
        return;
    mmrt_streamed_free(program);
    for (int32_t i = 0; i < program->n_ropes; i++)
        free(program->ropes[i].frequencies);
    free(program->weights);
    free(program->buffers);
    free(program->ropes);
    free(program->ops);
    free(program->spans);
    if (program->memory)
        munmap(program->memory, program->memory_bytes);
    free(program);
}

static mmrt_status finished(mmrt_error *err) {
    return mmrt_fail(err, MMRT_ARGUMENT, "the program is finished: it takes no more");
}

/* Appends a copy of `item` to one of the program's arrays, which grow by doubling. */
static mmrt_status append(const mmrt_program *program, void **array, int32_t *n, const void *item,
                          size_t bytes, mmrt_error *err) {
    if (program->memory)
        return finished(err);
    if ((*n & (*n - 1)) == 0) { /* full: a power of two, or empty */
        void *grown = realloc(*array, (*n ? 2 * (size_t)*n : 1) * bytes);
        if (!grown)
            return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a program");
        *array = grown;
    }
    memcpy((char *)*array + (size_t)*n * bytes, item, bytes);
    ++*n;
    return MMRT_OK;
}

/* Widens the span of the weight's mapping, if it is in one. */
static mmrt_status add_span(mmrt_program *program, const mmrt_weight *weight, mmrt_error *err) {
    mmrt_mapping *mapping = mmrt_guard_find(weight->data);
    if (!mapping)
        return MMRT_OK;
    const unsigned char *data = mmrt_mapping_data(mapping);
    struct span new = {mapping, (uint64_t)((const unsigned char *)weight->data - data), 0};
    new.end = new.start + weight->rows * row_bytes(weight);
    for (int32_t i = 0; i < program->n_spans; i++) {
        struct span *span = &program->spans[i];
        if (span->mapping == mapping) {
            span->start = new.start < span->start ? new.start : span->start;
            span->end = new.end > span->end ? new.end : span->end;
            return MMRT_OK;
        }
    }
    return append(program, (void **)&program->spans, &program->n_spans, &new, sizeof new, err);
}

mmrt_status mmrt_program_add_weight(mmrt_program *program, const mmrt_weight *weight,
                                    int32_t *index, mmrt_error *err) {
    const struct mmrt_format *format = mmrt_format_find(weight->type);
    if (!format || !format->unpack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: type %s is not supported yet",
                         weight->name, format ? format->name : "unknown");
    if (!weight->rows || !weight->cols || weight->cols % format->elements)
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: impossible shape %llu x %llu", weight->name,
                         (unsigned long long)weight->rows, (unsigned long long)weight->cols);
    *index = program->n_weights;
    mmrt_status status = append(program, (void **)&program->weights, &program->n_weights, weight,
                                sizeof *weight, err);
    if (status)
        return status;
    status = add_span(program, weight, err);
    program->n_weights -= status != MMRT_OK; /* it was not added */
    return status;
}

mmrt_status mmrt_program_add_buffer(mmrt_program *program, uint32_t width, int32_t *index,
                                    mmrt_error *err) {
    const struct buffer buffer = {.columns = {.k = width}};
    if (width < 1 || width > MOST_WIDTH)
        return mmrt_fail(err, MMRT_ARGUMENT, "buffers of %u values a token: 1 to %d are possible",
                         width, MOST_WIDTH);
    *index = program->n_buffers;
    return append(program, (void **)&program->buffers, &program->n_buffers, &buffer, sizeof buffer,
                  err);
}

mmrt_status mmrt_program_add_rope(mmrt_program *program, const double *frequencies,
                                  uint32_t n_pairs, float magnitude, int32_t *index,
                                  mmrt_error *err) {
    struct rope rope = {.n_pairs = n_pairs, .magnitude = magnitude};
    if (n_pairs < 1 || n_pairs > MOST_WIDTH)
        return mmrt_fail(err, MMRT_ARGUMENT, "rotations of %u pairs: 1 to %d are possible", n_pairs,
                         MOST_WIDTH);
    rope.frequencies = malloc(n_pairs * sizeof *frequencies);
    if (!rope.frequencies)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a rotation table");
    memcpy(rope.frequencies, frequencies, n_pairs * sizeof *frequencies);
    *index = program->n_ropes;
    mmrt_status status =
        append(program, (void **)&program->ropes, &program->n_ropes, &rope, sizeof rope, err);
    if (status)
        free(rope.frequencies);
    return status;
}

/* ---- checks of one operation ---- */

static uint64_t width_of(const mmrt_program *program, int32_t buffer) {
    return program->buffers[buffer].columns.k;
}

static bool is_buffer(const mmrt_program *program, int32_t index) {
    return index >= 0 && index < program->n_buffers;
}

static mmrt_status check_weight(const mmrt_program *program, int32_t index, uint64_t rows,
                                uint64_t cols, mmrt_error *err) {
    if (index < 0 || index >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no weight %d", program->n_ops, index);
    const mmrt_weight *w = &program->weights[index];
    if (w->cols == cols && (!rows || w->rows == rows))
        return MMRT_OK;
    if (!rows)
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: rows of %llu where %llu are expected",
                         w->name, (unsigned long long)w->cols, (unsigned long long)cols);
    return mmrt_fail(err, MMRT_FORMAT,
                     "tensor %s: shape (%llu, %llu) where (%llu, %llu) is expected", w->name,
                     (unsigned long long)w->rows, (unsigned long long)w->cols,
                     (unsigned long long)rows, (unsigned long long)cols);
}

/* Norms and biases are added and multiplied as float32 where they lie. */
static mmrt_status check_vector(const mmrt_program *program, int32_t index, uint64_t n,
                                mmrt_error *err) {
    mmrt_status status = check_weight(program, index, 1, n, err);
    if (status)
        return status;
    const mmrt_weight *w = &program->weights[index];
    if (w->type != MMRT_TYPE_F32)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: type %s where F32 is expected", w->name,
                         mmrt_format_find(w->type)->name);
    if ((uintptr_t)w->data % sizeof(float))
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: its data is not aligned to 4 bytes",
                         w->name);
    return MMRT_OK;
}

/* One of the matrices of an operation, and its bias. What it needs of the buffer that it reads is
 * noted there. rows: 0 for any number. */
static mmrt_status check_matrix(mmrt_program *program, const mmrt_op *op, int i, uint64_t rows,
                                mmrt_error *err) {
    const int32_t index = op->weights[i];
    mmrt_status status = check_weight(program, index, rows, width_of(program, op->in), err);
    if (!status && op->biases[i] >= 0)
        status = check_vector(program, op->biases[i], program->weights[index].rows, err);
    if (!status && mmrt_format_find(program->weights[index].type)->elements > 1)
        program->buffers[op->in].quantised = true;
    return status;
}

static mmrt_status check_linear(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    uint64_t rows = 0;
    if (op->weights[0] < 0 || (op->weights[1] < 0 && op->weights[2] >= 0))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: a weight is missing", program->n_ops);
    for (int i = 0; i < 3 && op->weights[i] >= 0; i++) {
        mmrt_status status = check_matrix(program, op, i, 0, err);
        if (status)
            return status;
        rows += program->weights[op->weights[i]].rows;
    }
    if (rows != width_of(program, op->out))
        return mmrt_fail(err, MMRT_FORMAT,
                         "tensor %s: %llu rows (with its neighbours) where %llu are expected",
                         program->weights[op->weights[0]].name, (unsigned long long)rows,
                         (unsigned long long)width_of(program, op->out));
    return MMRT_OK;
}

static mmrt_status check_heads(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const mmrt_kv_shape shape = program->kv_shape;
    const uint64_t n_kv = shape.n_heads, n_q = (uint64_t)op->n_heads, n = n_q + 2 * n_kv;
    const uint64_t dim = shape.head_dim, room = mmrt_kv_head_room(shape);
    const bool attends = op->kind == MMRT_OP_ATTEND;
    if (op->n_heads < 1 || n_q % n_kv || op->layer < 0 || (uint32_t)op->layer >= shape.n_layers ||
        width_of(program, op->in) != n * (attends ? room : dim))
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: %d query heads do not fit %u key-value heads of %u", op->layer,
                         op->n_heads, shape.n_heads, shape.head_dim);
    if (width_of(program, op->out) != (attends ? n_q : n) * room)
        return mmrt_fail(err, MMRT_ARGUMENT, "layer %d: the heads do not fit buffer %d", op->layer,
                         op->out);
    if (attends)
        return MMRT_OK;
    if (shape.k_type == MMRT_TYPE_Q8_0 || shape.v_type == MMRT_TYPE_Q8_0)
        program->buffers[op->out].quantised = true;
    for (int i = 0; i < 2; i++)
        if (op->weights[i] >= 0) {
            mmrt_status status = check_vector(program, op->weights[i], shape.head_dim, err);
            if (status)
                return status;
        }
    if (op->rope >= program->n_ropes ||
        (op->rope >= 0 && 2 * program->ropes[op->rope].n_pairs > shape.head_dim))
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: more dimensions rotated than the %u of a head", op->layer,
                         shape.head_dim);
    return MMRT_OK;
}

static mmrt_status check_join(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t n = (uint64_t)op->n_heads, room = mmrt_kv_head_room(program->kv_shape);
    return op->n_heads >= 1 && width_of(program, op->in) == n * room &&
                   width_of(program, op->out) == n * program->kv_shape.head_dim
               ? MMRT_OK
               : mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
}

static mmrt_status check_norm(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const uint64_t width = width_of(program, op->stream);
    mmrt_status status = MMRT_OK;
    if ((op->in >= 0 && width_of(program, op->in) != width) ||
        (op->out >= 0 && width_of(program, op->out) != width))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: widths differ", program->n_ops);
    if (op->out >= 0)
        status = check_vector(program, op->weights[0], width, err);
    if (!status && op->weights[1] >= 0)
        status = check_vector(program, op->weights[1], width, err);
    return status;
}

static mmrt_status check_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status;
    switch (op->kind) {
    case MMRT_OP_EMBED:
        status = check_weight(program, op->weights[0], program->vocabulary,
                              width_of(program, op->out), err);
        if (!status)
            program->vocabulary = program->weights[op->weights[0]].rows;
        return status;
    case MMRT_OP_NORM: return check_norm(program, op, err);
    case MMRT_OP_LINEAR: return check_linear(program, op, err);
    case MMRT_OP_GLU:
        status = check_matrix(program, op, 0, width_of(program, op->out), err);
        return status ? status : check_matrix(program, op, 1, width_of(program, op->out), err);
    case MMRT_OP_ROPE:
    case MMRT_OP_ATTEND: return check_heads(program, op, err);
    case MMRT_OP_JOIN: return check_join(program, op, err);
    case MMRT_OP_LOGITS:
        status = check_matrix(program, op, 0, program->vocabulary, err);
        if (!status)
            program->outputs = program->weights[op->weights[0]].rows;
        return status;
    }
    return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: unknown kind %d", program->n_ops, op->kind);
}

mmrt_status mmrt_program_add_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    if (program->memory) /* before the checks, which note what they find */
        return finished(err);
    const bool reads = op->kind != MMRT_OP_EMBED && op->kind != MMRT_OP_NORM;
    const bool writes = op->kind != MMRT_OP_NORM && op->kind != MMRT_OP_LOGITS;
    if ((reads || op->in >= 0 ? !is_buffer(program, op->in) : false) ||
        (writes || op->out >= 0 ? !is_buffer(program, op->out) : false) ||
        (op->kind == MMRT_OP_NORM && !is_buffer(program, op->stream)))
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no such buffer", program->n_ops);
    mmrt_status status = check_op(program, op, err);
    return status ? status
                  : append(program, (void **)&program->ops, &program->n_ops, op, sizeof *op, err);
}

/* ---- memory ---- */

static size_t rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Of a step's last columns, how many matvec is to read. */
static size_t few_columns(const mmrt_program *program) {
    return program->exact || program->max_tokens < MMRT_FEW ? program->max_tokens : MMRT_FEW;
}

static size_t buffer_bytes(const mmrt_program *program, const struct buffer *buffer) {
    return buffer->quantised
               ? mmrt_columns_bytes(program->max_tokens, buffer->columns.k, few_columns(program))
               : rounded(program->max_tokens * buffer->columns.k * sizeof(float));
}

static size_t rope_bytes(const mmrt_program *program, const struct rope *rope) {
    return rounded((size_t)program->max_tokens * rope->n_pairs * 2 * sizeof(float));
}

/* What one thread needs for `op`, besides what it shares. */
static size_t op_scratch(const mmrt_program *program, const mmrt_op *op) {
    switch (op->kind) {
    case MMRT_OP_LINEAR:
    case MMRT_OP_LOGITS: return MMRT_MATMUL_SCRATCH;
    case MMRT_OP_GLU:
        return MMRT_MATMUL_SCRATCH +
               2 * (program->max_tokens + MMRT_FEW) * MMRT_GLU_ROWS * sizeof(float);
    case MMRT_OP_ATTEND: return mmrt_attend_op_scratch(program);
    default: return 0;
    }
}

/* Of sections: n floats for each and each query head. */
static size_t sections_bytes(size_t n_heads, size_t n) {
    return rounded(n_heads * MMRT_ATTEND_SECTIONS * n * sizeof(float));
}

static size_t most_heads(const mmrt_program *program) {
    size_t most = 0;
    for (int32_t i = 0; i < program->n_ops; i++)
        if (program->ops[i].kind == MMRT_OP_ATTEND && (size_t)program->ops[i].n_heads > most)
            most = (size_t)program->ops[i].n_heads;
    return most;
}

mmrt_status mmrt_program_finish(mmrt_program *program, int n_threads, mmrt_error *err) {
    if (program->memory || !program->vocabulary || !program->outputs)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "a program needs EMBED and LOGITS, and is finished once");
    mmrt_status status = mmrt_program_check_flow(program, err);
    if (status)
        return status;
    size_t bytes = 0;
    for (int32_t i = 0; i < program->n_buffers; i++)
        bytes += buffer_bytes(program, &program->buffers[i]);
    for (int32_t i = 0; i < program->n_ropes; i++)
        bytes += rope_bytes(program, &program->ropes[i]);
    const size_t heads = most_heads(program), dim = mmrt_kv_head_room(program->kv_shape);
    bytes += sections_bytes(heads, dim) + sections_bytes(heads, 2);
    for (int32_t i = 0; i < program->n_ops; i++) {
        const size_t scratch = rounded(op_scratch(program, &program->ops[i]));
        if (scratch > program->thread_bytes)
            program->thread_bytes = scratch;
    }
    bytes += (size_t)n_threads * program->thread_bytes;
    /* Zeroes, which take memory only as far as steps touch them: see mmrt_program_rest. */
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %zu bytes of scratch", bytes);
    program->memory = at;
    program->memory_bytes = bytes;
    program->n_threads = n_threads;
    for (int32_t i = 0; i < program->n_buffers; i++) {
        struct buffer *buffer = &program->buffers[i];
        const size_t used = buffer_bytes(program, buffer);
        if (buffer->quantised)
            mmrt_columns_place(&buffer->columns, program->max_tokens, buffer->columns.k,
                               few_columns(program), at);
        else
            buffer->columns.x = (float *)(void *)at;
        at += used;
    }
    for (int32_t i = 0; i < program->n_ropes; i++) {
        program->ropes[i].table = (float *)(void *)at;
        at += rope_bytes(program, &program->ropes[i]);
    }
    program->sections.sums = (float *)(void *)at;
    at += sections_bytes(heads, dim);
    program->sections.weights = (float *)(void *)at;
    at += sections_bytes(heads, 2);
    program->thread_scratch = at;
    return MMRT_OK;
}

uint64_t mmrt_program_scratch_bytes(const mmrt_program *program, uint32_t n) {
    const uint64_t tokens = (uint64_t)((uint8_t *)program->sections.sums - program->memory);
    const uint64_t others = program->memory_bytes - tokens; /* sections, threads */
    return others + (n < program->max_tokens ? tokens * n / program->max_tokens : tokens);
}

void mmrt_program_rest(const mmrt_program *program) {
    madvise(program->memory, program->memory_bytes, MADV_DONTNEED);
}
