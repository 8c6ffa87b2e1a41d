#include "ops/experts.h"

#include "base/status.h"
#include "graph/check.h"
#include "step/rows.h"

#include <string.h>

size_t mmrt_expert_order_bytes(const mmrt_program *program, const mmrt_op *op, uint32_t n_experts) {
    const size_t choices = (size_t)program->max_tokens * (size_t)op->n_used;
    return (2 * (size_t)n_experts + 1 + choices) * sizeof(uint32_t);
}

struct expert_order mmrt_expert_order(const struct worker *w, uint32_t n_experts, void *scratch) {
    uint32_t *active = scratch, *first = active + n_experts, *column = first + n_experts + 1;
    const size_t token = first_token(w), n = w->step->n - token;
    const int32_t n_used = w->op->n_used;
    memset(first, 0, (n_experts + 1) * sizeof *first);
    for (size_t t = 0; t < n; t++)
        for (int32_t i = 0; i < n_used; i++)
            first[chosen_expert(w, token + t, i) + 1]++;
    uint32_t n_active = 0;
    for (uint32_t e = 0; e < n_experts; e++) {
        if (first[e + 1])
            active[n_active++] = e;
        first[e + 1] += first[e];
    }
    for (size_t t = 0; t < n; t++) /* each moves its expert's beginning, ... */
        for (int32_t i = 0; i < n_used; i++)
            column[t * (size_t)n_used + (size_t)i] = first[chosen_expert(w, token + t, i)]++;
    memmove(first + 1, first, n_experts * sizeof *first); /* ... to where the next one begins */
    first[0] = 0;
    if (w->in_order) /* this is known by now: see below */
        active = w->step->program->units->wanted;
    return (struct expert_order){n_active, active, first, column};
}

void mmrt_want_experts(const struct worker *w, const struct expert_order *order) {
    const struct units *units = w->step->program->units;
    const int32_t layer = units ? units->op_experts[number_of(w)] : -1;
    if (layer < 0 || !mmrt_source_is_limited(units->source))
        return;
    const size_t n_used = (size_t)w->op->n_used, begin = first_token(w), end = w->step->n;
    const size_t recent = end - begin > MMRT_RECENT_TOKENS ? end - MMRT_RECENT_TOKENS : begin;
    for (size_t t = recent; t < end; t++)
        for (size_t i = 0; i < n_used; i++)
            units->recent[(t - recent) * n_used + i] = chosen_expert(w, t, (int32_t)i);
    memcpy(units->wanted, order->active, order->n_active * sizeof *units->wanted);
    const struct mmrt_want want = {.bank = layer,
                                   .items = units->wanted,
                                   .n = order->n_active,
                                   .recent = units->recent,
                                   .n_tokens = end - recent,
                                   .n_each = n_used};
    mmrt_source_want(units->source, &want);
}

mmrt_status mmrt_check_choices(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->choices, false, err);
    if (status)
        return status;
    if (op->n_used < 1 || program->buffers[op->choices].choices_of != op->n_used)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "operation %d: no ROUTE has written choices of %d experts to buffer %d",
                         program->n_ops, op->n_used, op->choices);
    return MMRT_OK;
}

/* A bias for each row of each matrix. */
static mmrt_status check_biases(const mmrt_program *program, int32_t index,
                                const mmrt_weight *stack, mmrt_error *err) {
    const mmrt_weight *biases = &program->weights[index];
    if (biases->type != MMRT_TYPE_F32 || (uintptr_t)biases->data % sizeof(float))
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor %s: aligned F32 is expected", biases->name);
    if (biases->stack > 1 || biases->rows * biases->cols != stack->stack * stack->rows)
        return mmrt_fail(
            err, MMRT_FORMAT, "tensor %s: shape (%llu, %llu) where (%llu, %llu) is expected",
            biases->name, (unsigned long long)biases->rows, (unsigned long long)biases->cols,
            (unsigned long long)stack->stack, (unsigned long long)stack->rows);
    return MMRT_OK;
}

mmrt_status mmrt_check_stack(const mmrt_program *program, const mmrt_op *op, int i, uint64_t rows,
                             uint64_t cols, mmrt_error *err) {
    const int32_t index = op->weights[i];
    if (index < 0 || index >= program->n_weights || op->biases[i] >= program->n_weights)
        return mmrt_fail(err, MMRT_ARGUMENT, "operation %d: no weight %d", program->n_ops, index);
    const mmrt_weight *w = &program->weights[index];
    const uint32_t n_experts = program->buffers[op->choices].n_experts;
    if (w->stack != n_experts || w->rows != rows || w->cols != cols)
        return mmrt_fail(err, MMRT_FORMAT,
                         "tensor %s: shape (%llu, %llu, %llu) where (%u, %llu, %llu) is expected",
                         w->name, (unsigned long long)w->stack, (unsigned long long)w->rows,
                         (unsigned long long)w->cols, n_experts, (unsigned long long)rows,
                         (unsigned long long)cols);
    mmrt_status status = MMRT_OK;
    if (op->stack_scales[i] >= 0)
        status = mmrt_check_vector(program, op->stack_scales[i], n_experts, err);
    if (!status && op->biases[i] >= 0)
        status = check_biases(program, op->biases[i], w, err);
    return status;
}

bool mmrt_expert_multiply(struct worker *w, int i, uint32_t expert, uint64_t first, uint64_t n_rows,
                          const struct mmrt_columns *x, size_t column, size_t n, float *y,
                          size_t y_stride, void *scratch) {
    const mmrt_program *program = w->step->program;
    const mmrt_weight *weight = &program->weights[w->op->weights[i]];
    const uint64_t row = expert * weight->rows + first;
    const uint8_t *rows = rows_at(w, w->op->weights[i], row);
    if (!rows)
        return false;
    const struct mmrt_columns view = mmrt_columns_up_to(x, column + n - 1);
    mmrt_multiply(program->kernels, w->step->exact, weight, rows, n_rows, NULL, &view, column, n, y,
                  y_stride, scratch);
    rows_done(w, w->op->weights[i], row, row + n_rows);
    const int32_t scales = w->op->stack_scales[i];
    const float scale =
        scales < 0 ? w->op->scales[i] : ((const float *)program->weights[scales].data)[expert];
    for (size_t c = 0; scale != 1 && c < n; c++)
        for (uint64_t r = 0; r < n_rows; r++)
            y[c * y_stride + r] *= scale;
    if (w->op->biases[i] < 0)
        return true;
    const float *bias = (const float *)program->weights[w->op->biases[i]].data + row;
    for (size_t c = 0; c < n; c++)
        program->kernels->add(y + c * y_stride, bias, n_rows);
    return true;
}
