/* What recurrent operations keep of a text: their layer's part of its block. The tokens of a text
 * have to be taken in order, though they may be in several parts of a step. */
#ifndef MMRT_OPS_BLOCKS_H
#define MMRT_OPS_BLOCKS_H

#include "kernels/kernels.h"
#include "step/step.h"

#include <math.h>

/* What both operations check that keep a matrix for each head: the buffers that they read, of
 * which one holds gates, and the one that they write. */
mmrt_status mmrt_check_heads_with_states(mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* What their decays, or steps, are made by. */
static inline float softplus(float x) {
    return x > 20 ? x : log1pf(expf(x));
}

/* Whether the operation's layer keeps a block of at least so many floats. */
mmrt_status mmrt_check_block(const mmrt_program *program, const mmrt_op *op, uint64_t n_floats,
                             mmrt_error *err);

/* The layer's floats as the tokens before this step left them. `part`: any of the text's. */
static inline const float *block_before(const struct worker *w, const struct part *part) {
    const mmrt_state_store *store = w->step->program->store;
    const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, (uint32_t)w->op->layer);
    return (const float *)(const void *)(mmrt_state_block(part->state) + layer->offset);
}

/* Those that a token of `part` leaves, all of which have to be written: from them the text's next
 * token goes on. They are the same for all its tokens of a step, of which only the last one's need
 * be written then, unless the step is exact. */
static inline float *block_after_token(const struct worker *w, const struct part *part,
                                       size_t token) {
    const mmrt_state_store *store = w->step->program->store;
    const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, (uint32_t)w->op->layer);
    const uint64_t length = position_of(part, token) + 1;
    return (float *)(void *)(mmrt_state_block_after(part->state, length) + layer->offset);
}

/* A walk over the tokens of a text in a step, in order: MMRT_CHUNK of them at a time where as many
 * lie between two multiples of it in the text, unless each is to be computed as in a step of its
 * own; else one. So what is computed does not depend on where a text is cut in steps, as long as it
 * is cut at such multiples. */
struct walk {
    uint32_t tokens[MMRT_CHUNK]; /* their numbers in the step */
    size_t n;
    const float *before; /* the layer's floats as the tokens before these left them */
    float *after;        /* those that these leave: as above */
    /* What is ahead: */
    const struct part *part; /* of the next token; NULL: there are no more */
    uint32_t at;             /* tokens of this part that are behind */
    const float *left;       /* the layer's floats as those behind left them */
};

static inline struct walk walk_over(const struct worker *w, const struct part *text) {
    return (struct walk){.part = text, .left = block_before(w, text)};
}

/* On to the first tokens, or the next ones. False: there are no more. */
bool mmrt_walk_on(const struct worker *w, struct walk *walk);

/* The first part, from `part` on, that begins a text; NULL: there are no more. */
static inline const struct part *next_text(const struct step *step, const struct part *part) {
    const size_t last = step->n - 1;
    for (;; part++) {
        if (part->begins)
            return part;
        if (last < (size_t)part->first + part->n)
            return NULL;
    }
}

/* The first part of the text after the one that begins with `part`; NULL: there are no more. */
static inline const struct part *text_after(const struct step *step, const struct part *part) {
    return (size_t)part->first + part->n == step->n ? NULL : next_text(step, part + 1);
}

#endif
