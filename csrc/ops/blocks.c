#include "ops/blocks.h"

#include "base/status.h"
#include "graph/check.h"

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

static size_t take(struct walk *walk, size_t most) {
    size_t n = 0;
    while (walk->part && n < most) {
        walk->tokens[n++] = walk->part->first + walk->at++;
        if (walk->at == walk->part->n)
            walk->part = walk->part->next, walk->at = 0;
    }
    return n;
}

bool mmrt_walk_on(const struct worker *w, struct walk *walk) {
    const struct part *part = walk->part;
    walk->n = 0;
    if (!part)
        return false;
    if (!w->step->exact && (part->position + walk->at) % MMRT_CHUNK == 0) {
        struct walk chunk = *walk;
        if (take(&chunk, MMRT_CHUNK) == MMRT_CHUNK)
            *walk = chunk, walk->n = MMRT_CHUNK;
    }
    if (!walk->n)
        walk->n = take(walk, 1);
    walk->before = walk->left;
    walk->left = walk->after = block_after_token(w, part, walk->tokens[0]);
    return true;
}

mmrt_status mmrt_check_heads_with_states(mmrt_program *program, const mmrt_op *op,
                                         mmrt_error *err) {
    mmrt_status status = mmrt_check_read(program, op, op->in, false, err);
    if (!status)
        status = mmrt_check_read(program, op, op->stream, false, err);
    if (!status)
        status = mmrt_check_buffer(program, op->out, err);
    if (!status)
        status = mmrt_check_apart(program, op, err);
    return status;
}
