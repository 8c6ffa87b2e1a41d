#include "ops/blocks.h"

#include "base/status.h"

mmrt_status mmrt_check_block(const mmrt_program *program, const mmrt_op *op, uint64_t n_floats,
                             mmrt_error *err) {
    const struct mmrt_state_layer *layer = mmrt_state_layer_at(program->store, (uint32_t)op->layer);
    if (!layer)
        return mmrt_fail(err, MMRT_FORMAT, "layer %d: there are %u layers", op->layer,
                         mmrt_state_n_layers(program->store));
    const uint64_t found =
        layer->spec.kind == MMRT_STATE_BLOCK ? layer->spec.block_bytes / sizeof(float) : 0;
    if (found < n_floats)
        return mmrt_fail(err, MMRT_FORMAT,
                         "layer %d: it keeps a block of %llu floats where %llu are needed",
                         op->layer, (unsigned long long)found, (unsigned long long)n_floats);
    return MMRT_OK;
}
