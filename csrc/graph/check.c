#include "graph/check.h"

#include "base/status.h"

static enum extent extent_of(const mmrt_op *op) {
    return op->outputs_only ? OUTPUTS : ALL_TOKENS;
}

mmrt_status mmrt_check_buffer(const mmrt_program *program, int32_t buffer, mmrt_error *err) {
    return buffer >= 0 && buffer < program->n_buffers
               ? MMRT_OK
               : mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no such buffer", program->n_ops);
}

mmrt_status mmrt_check_read(const mmrt_program *program, const mmrt_op *op, int32_t buffer,
                            bool quantised, mmrt_error *err) {
    mmrt_status status = mmrt_check_buffer(program, buffer, err);
    if (status)
        return status;
    const struct buffer *read = &program->buffers[buffer];
    const enum extent wanted = extent_of(op);
    if (read->written < wanted)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "operation %d reads buffer %d, which none before it has written%s",
                         program->n_ops, buffer, read->written ? " for all tokens" : "");
    if (quantised && read->written_quantised < wanted)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "operation %d reads buffer %d quantised, which none before it has "
                         "quantised%s",
                         program->n_ops, buffer, read->written_quantised ? " for all tokens" : "");
    return MMRT_OK;
}

mmrt_status mmrt_check_apart(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    if (op->in == op->out)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d both reads and writes buffer %d",
                         program->n_ops, op->in);
    return MMRT_OK;
}

void mmrt_note_read(mmrt_program *program, int32_t buffer, bool quantised) {
    program->buffers[buffer].quantised |= quantised;
}

void mmrt_note_read_of_any(mmrt_program *program, int32_t buffer, bool quantised) {
    mmrt_note_read(program, buffer, quantised);
    program->buffers[buffer].any_column = true;
}

void mmrt_note_write(mmrt_program *program, const mmrt_op *op, int32_t buffer, bool quantised) {
    struct buffer *written = &program->buffers[buffer];
    written->written = extent_of(op);
    written->written_quantised = quantised ? extent_of(op) : NO_TOKENS;
    written->heads_of = written->choices_of = 0;
}

mmrt_status mmrt_check_weight(const mmrt_program *program, int32_t weight, uint64_t rows,
                              uint64_t cols, mmrt_error *err) {
    if (weight < 0 || weight >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no weight %d", program->n_ops, weight);
    const mmrt_weight *w = &program->weights[weight];
    if (w->stack > 1)
        return mmrt_fail(err, MMRT_FORMAT,
                         "tensor %s: shape (%llu, %llu, %llu) where one matrix is expected",
                         w->name, (unsigned long long)w->stack, (unsigned long long)w->rows,
                         (unsigned long long)w->cols);
    if (w->cols == cols && (!rows || w->rows == rows))
        return MMRT_OK;
    if (!rows)
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: rows of %llu where %llu are expected",
                         w->name, (unsigned long long)w->cols, (unsigned long long)cols);
    if (rows == 1 && w->rows == 1)
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: shape (%llu,) where (%llu,) is expected",
                         w->name, (unsigned long long)w->cols, (unsigned long long)cols);
    if (rows == 1)
        return mmrt_fail(
            err, MMRT_FORMAT, "tensor %s: shape (%llu, %llu) where (%llu,) is expected", w->name,
            (unsigned long long)w->rows, (unsigned long long)w->cols, (unsigned long long)cols);
    return mmrt_fail(err, MMRT_FORMAT,
                     "tensor %s: shape (%llu, %llu) where (%llu, %llu) is expected", w->name,
                     (unsigned long long)w->rows, (unsigned long long)w->cols,
                     (unsigned long long)rows, (unsigned long long)cols);
}

mmrt_status mmrt_check_floats(const mmrt_program *program, int32_t weight, uint64_t rows,
                              uint64_t cols, mmrt_error *err) {
    mmrt_status status = mmrt_check_weight(program, weight, rows, cols, err);
    if (status)
        return status;
    const mmrt_weight *w = &program->weights[weight];
    if (w->type != MMRT_TYPE_F32)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: type %s where F32 is expected", w->name,
                         mmrt_format_find(w->type)->name);
    if ((uintptr_t)w->data % sizeof(float))
        return mmrt_fail(err, MMRT_FORMAT, "tensor %s: its data is not aligned to 4 bytes",
                         w->name);
    return MMRT_OK;
}

mmrt_status mmrt_check_vector(const mmrt_program *program, int32_t weight, uint64_t n,
                              mmrt_error *err) {
    return mmrt_check_floats(program, weight, 1, n, err);
}

mmrt_status mmrt_check_matrix(const mmrt_program *program, const mmrt_op *op, int i, uint64_t rows,
                              mmrt_error *err) {
    const int32_t weight = op->weights[i];
    mmrt_status status = mmrt_check_weight(program, weight, rows, width_of(program, op->in), err);
    if (!status && op->biases[i] >= 0)
        status = mmrt_check_vector(program, op->biases[i], program->weights[weight].rows, err);
    return status;
}

bool mmrt_reads_quantised(const mmrt_program *program, const mmrt_op *op) {
    for (int i = 0; i < 3 && op->weights[i] >= 0; i++)
        if (mmrt_format_find(program->weights[op->weights[i]].type)->elements > 1)
            return true;
    return false;
}
