#include "ops/multiply.h"

void mmrt_op_multiply(const struct worker *w, int i, const uint8_t *rows, uint64_t first,
                      uint64_t n_rows, const uint8_t *next, float *y, size_t y_stride,
                      void *scratch) {
    const mmrt_program *program = w->step->program;
    const size_t token = first_token(w), n = w->step->n - token;
    if (w->op->alike) {
        const mmrt_weight *weight = &program->weights[w->op->weights[i]];
        program->kernels->matmul[weight->type](rows, mmrt_row_bytes(weight), n_rows,
                                               columns_at(w->step, w->op->in), token, n, y,
                                               y_stride, scratch);
    } else
        mmrt_multiply(program->kernels, w->step->exact, &program->weights[w->op->weights[i]], rows,
                      n_rows, next, columns_at(w->step, w->op->in), token, n, y, y_stride, scratch);
    const float scale = w->op->scales[i];
    for (size_t t = 0; scale != 1 && t < n; t++)
        for (uint64_t r = 0; r < n_rows; r++)
            y[t * y_stride + r] *= scale;
    if (w->op->biases[i] < 0)
        return;
    const float *bias = weight_at(w->step, w->op->biases[i])->data;
    for (size_t t = 0; t < n; t++)
        program->kernels->add(y + t * y_stride, bias + first, n_rows);
}

size_t mmrt_op_multiply_scratch(const mmrt_program *program, const mmrt_op *op) {
    (void)program, (void)op;
    return MMRT_MATMUL_SCRATCH;
}
