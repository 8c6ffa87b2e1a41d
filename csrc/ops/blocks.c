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

static size_t take(struct walk *walk, size_t most, uint32_t *tokens) {
    size_t n = 0;
    while (walk->part && n < most) {
        tokens[n++] = walk->part->first + walk->at++;
        if (walk->at == walk->part->n)
            *walk = (struct walk){walk->part->next, 0};
    }
    return n;
}

size_t mmrt_walk_on(const struct step *step, struct walk *walk, uint32_t tokens[MMRT_CHUNK]) {
    if (walk->part && !step->exact && (walk->part->position + walk->at) % MMRT_CHUNK == 0) {
        struct walk ahead = *walk;
        if (take(&ahead, MMRT_CHUNK, tokens) == MMRT_CHUNK) {
            *walk = ahead;
            return MMRT_CHUNK;
        }
    }
    return take(walk, 1, tokens);
}
