#include "ops/heads.h"

#include "base/status.h"
#include "kv/kv.h"

mmrt_status mmrt_check_heads(const mmrt_program *program, const mmrt_op *op, uint64_t in_dim,
                             uint64_t n_out, mmrt_error *err) {
    const mmrt_kv_shape shape = program->kv_shape;
    const uint64_t n_kv = shape.n_heads, n_q = (uint64_t)op->n_heads;
    if (op->n_heads < 1 || n_q % n_kv || op->layer < 0 || (uint32_t)op->layer >= shape.n_layers ||
        width_of(program, op->in) != (n_q + 2 * n_kv) * in_dim)
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: %d query heads do not fit %u key-value heads of %u", op->layer,
                         op->n_heads, shape.n_heads, shape.head_dim);
    if (width_of(program, op->out) != n_out * mmrt_kv_head_room(shape))
        return mmrt_fail(err, MMRT_ARGUMENT, "layer %d: the heads do not fit buffer %d", op->layer,
                         op->out);
    return MMRT_OK;
}
