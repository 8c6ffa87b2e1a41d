/* The texts of a step, and the order of its tokens. */
#ifndef MMRT_STEP_PARTS_H
#define MMRT_STEP_PARTS_H

#include "step/step.h"

/* Tokens whose logits are wanted come last, those of all texts together, so that operations for
 * them alone work on the last tokens of a step: a text may be in two parts. Either half is in the
 * order in which the caller gave the texts. */
struct parts {
    struct part *parts; /* [n] */
    int32_t n;
    int32_t *tokens;
    uint32_t n_tokens, first_output;
    bool exact; /* each token is to be computed as in a step of its own */
};

/* Finds where in its text each part begins, and reserves what its tokens will leave there.
 * ARGUMENT: invalid ids, texts of another model, more tokens than a step takes. Call
 * mmrt_parts_end after a failure too. */
mmrt_status mmrt_parts_begin(const mmrt_program *program, const mmrt_part *given, int32_t n_given,
                             const int32_t *tokens, struct parts *parts, mmrt_error *err);

/* done: the texts now include the tokens; else they are as before. Frees what begin allocated. */
void mmrt_parts_end(struct parts *parts, bool done);

#endif
