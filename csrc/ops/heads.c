#include "ops/heads.h"

#include "base/status.h"

mmrt_status mmrt_check_layer(const mmrt_program *program, const mmrt_op *op, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    if (!layer)
        return mmrt_fail(err, MMRT_FORMAT, "layer %d: there are %u layers", op->layer,
                         mmrt_state_n_layers(program->store));
    if (layer->spec.kind != MMRT_STATE_PAGES && layer->spec.kind != MMRT_STATE_PAGES_OF_LAYER)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "layer %d: it has no keys and values", op->layer);
    if (layer->spec.k_dim != layer->spec.v_dim)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "layer %d: keys of %u elements and values of %u: only equal ones run",
                         op->layer, layer->spec.k_dim, layer->spec.v_dim);
    return MMRT_OK;
}

mmrt_status mmrt_check_heads(const mmrt_program *program, const mmrt_op *op, uint64_t in_dim,
                             uint64_t n_in, uint64_t n_out, mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_layer_of(program, op);
    const uint64_t n_kv = layer->spec.n_heads, n_q = (uint64_t)op->n_heads;
    if (op->n_heads < 1 || n_q % n_kv || width_of(program, op->in) != n_in * in_dim)
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: %d query heads do not fit %u key-value heads of %u", op->layer,
                         op->n_heads, layer->spec.n_heads, layer->spec.k_dim);
    if (width_of(program, op->out) != n_out * mmrt_head_room(layer))
        return mmrt_fail(err, MMRT_ARGUMENT, "layer %d: the heads do not fit buffer %d", op->layer,
                         op->out);
    return MMRT_OK;
}
