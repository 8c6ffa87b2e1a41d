/* Building a program: every index and shape is checked here, so that a step need not. */
#include "graph/program.h"

#include "base/status.h"
#include "graph/op.h"
#include "map/guard.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* No sum of bytes overflows below these; memory ends long before. */
enum { MOST_TOKENS = 1 << 16, MOST_WIDTH = INT32_MAX };

mmrt_status mmrt_program_create(mmrt_isa isa, uint32_t max_tokens, mmrt_state_store *store,
                                bool exact, mmrt_program **out, mmrt_error *err) {
    if (max_tokens < 1 || max_tokens > MOST_TOKENS)
        return mmrt_fail(err, MMRT_ARGUMENT, "steps of %u tokens: 1 to %d are possible", max_tokens,
                         MOST_TOKENS);
    mmrt_program *program = calloc(1, sizeof *program);
    if (!program)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a program");
    program->kernels = mmrt_kernels_for(isa);
    program->max_tokens = max_tokens;
    program->exact = exact;
    program->store = mmrt_state_store_use(store);
    *out = program;
    return MMRT_OK;
}

void mmrt_program_free(mmrt_program *program) {
    if (!program)
        return;
    mmrt_units_free(program);
    mmrt_state_store_free(program->store);
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

/* Makes room for one more than n items in one of the program's arrays, which grow by doubling. */
static mmrt_status make_room(const mmrt_program *program, void **array, int32_t n, size_t bytes,
                             mmrt_error *err) {
    if (program->memory)
        return finished(err);
    if ((n & (n - 1)) != 0) /* else full: a power of two, or empty */
        return MMRT_OK;
    void *grown = realloc(*array, (n ? 2 * (size_t)n : 1) * bytes);
    if (!grown)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a program");
    *array = grown;
    return MMRT_OK;
}

static mmrt_status append(const mmrt_program *program, void **array, int32_t *n, const void *item,
                          size_t bytes, mmrt_error *err) {
    mmrt_status status = make_room(program, array, *n, bytes, err);
    if (status)
        return status;
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
    new.end = new.start + mmrt_weight_bytes(weight);
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

mmrt_status mmrt_program_add_buffer(mmrt_program *program, uint32_t width, uint32_t per_token,
                                    int32_t *index, mmrt_error *err) {
    const struct buffer buffer = {.columns = {.k = width}, .per_token = per_token};
    if (width < 1 || per_token < 1 || (uint64_t)width * per_token > MOST_WIDTH)
        return mmrt_fail(err, MMRT_ARGUMENT, "buffers of %llu values a token: 1 to %d are possible",
                         (unsigned long long)width * per_token, MOST_WIDTH);
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

mmrt_status mmrt_program_add_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct op_info *info = mmrt_op_info(op->kind);
    if (program->memory) /* before the check, which notes what it finds */
        return finished(err);
    if (!info)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: unknown kind %d", program->n_ops,
                         op->kind);
    if (program->outputs && op->kind != program->ops[program->n_ops - 1].kind)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: LOGITS or GIVE is the last one",
                         program->n_ops);
    mmrt_status status =
        make_room(program, (void **)&program->ops, program->n_ops, sizeof *op, err);
    if (!status)
        status = info->check(program, op, err);
    if (!status)
        program->ops[program->n_ops++] = *op;
    return status;
}
