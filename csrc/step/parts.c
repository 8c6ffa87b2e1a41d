#include "step/parts.h"

#include "base/status.h"
#include "state/state.h"

#include <stdlib.h>
#include <string.h>

/* As many as matvec can read of any buffer. */
_Static_assert((int)MMRT_EXACT_TOKENS <= (int)MMRT_FEW, "exact steps take more than few columns");

static mmrt_status count_tokens(const mmrt_program *program, const mmrt_part *given,
                                int32_t n_given, struct parts *parts, mmrt_error *err) {
    uint64_t n = 0, outputs = 0;
    for (int32_t i = 0; i < n_given; i++) {
        if (!given[i].n || given[i].n_outputs > given[i].n)
            return mmrt_fail(err, MMRT_ARGUMENT, "part %d: %u logits of %u tokens", i,
                             given[i].n_outputs, given[i].n);
        n += given[i].n;
        outputs += given[i].n_outputs;
        parts->exact |= given[i].exact;
    }
    if (n < 1 || n > program->max_tokens)
        return mmrt_fail(err, MMRT_ARGUMENT, "a step takes 1 to %u tokens, not %llu",
                         program->max_tokens, (unsigned long long)n);
    if (parts->exact && !program->exact && n > MMRT_EXACT_TOKENS)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "an exact step takes at most %d tokens, not %llu, as the program is not "
                         "exact",
                         MMRT_EXACT_TOKENS, (unsigned long long)n);
    parts->exact |= program->exact;
    parts->n_tokens = (uint32_t)n;
    parts->first_output = (uint32_t)(n - outputs);
    return MMRT_OK;
}

static mmrt_status check_tokens(const mmrt_program *program, const int32_t *tokens, uint32_t n,
                                mmrt_error *err) {
    if (program->taken) /* which has no vocabulary */
        return MMRT_OK;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint64_t)tokens[i] >= program->vocabulary)
            return mmrt_fail(err, MMRT_ARGUMENT, "token %u: id %d is not from 0 to %llu", i,
                             tokens[i], (unsigned long long)program->vocabulary - 1);
    return MMRT_OK;
}

/* Appends n of the caller's tokens, which are to lie from `first` on in the step. */
static uint32_t add_part(struct parts *parts, const mmrt_part *given, const int32_t *tokens,
                         uint32_t n, uint64_t position, uint32_t first) {
    if (!n)
        return first;
    parts->parts[parts->n++] =
        (struct part){.state = given->state, .first = first, .n = n, .position = position};
    memcpy(parts->tokens + first, tokens, n * sizeof *tokens);
    return first + n;
}

static void put_in_order(struct parts *parts, const mmrt_part *given, int32_t n_given,
                         const uint64_t *positions, const int32_t *tokens) {
    uint32_t first = 0;
    for (int outputs = 0; outputs < 2; outputs++) {
        const int32_t *from = tokens;
        for (int32_t i = 0; i < n_given; i++) {
            const uint32_t others = given[i].n - given[i].n_outputs;
            first = outputs ? add_part(parts, &given[i], from + others, given[i].n_outputs,
                                       positions[i] + others, first)
                            : add_part(parts, &given[i], from, others, positions[i], first);
            from += given[i].n;
        }
    }
}

/* Has each part know where its text goes on. */
static void link_texts(struct parts *parts) {
    for (int32_t i = 0; i < parts->n; i++) {
        struct part *part = &parts->parts[i];
        const uint64_t end = part->position + part->n;
        part->begins = part->position == mmrt_state_length(part->state);
        for (int32_t j = 0; j < parts->n && !part->next; j++)
            if (parts->parts[j].state == part->state && parts->parts[j].position == end)
                part->next = &parts->parts[j];
    }
}

mmrt_status mmrt_parts_begin(const mmrt_program *program, const mmrt_part *given, int32_t n_given,
                             const int32_t *tokens, struct parts *parts, mmrt_error *err) {
    *parts = (struct parts){0};
    if (n_given < 1)
        return mmrt_fail(err, MMRT_ARGUMENT, "a step without a text");
    mmrt_status status = count_tokens(program, given, n_given, parts, err);
    if (!status)
        status = check_tokens(program, tokens, parts->n_tokens, err);
    if (status)
        return status;
    uint64_t *positions = malloc((size_t)n_given * sizeof *positions);
    parts->parts = calloc(2 * (size_t)n_given, sizeof *parts->parts);
    parts->tokens = malloc(parts->n_tokens * sizeof *parts->tokens);
    if (!positions || !parts->parts || !parts->tokens)
        status = mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a step of %d parts", n_given);
    for (int32_t i = 0; !status && i < n_given; i++) {
        const mmrt_state *state = given[i].state;
        if (mmrt_state_store_of(state) != program->store)
            status = mmrt_fail(err, MMRT_ARGUMENT, "the sequence belongs to another model");
        positions[i] = mmrt_state_length(state);
        for (int32_t j = 0; j < i; j++) /* it goes on where the part before it ends */
            positions[i] += given[j].state == state ? given[j].n : 0;
        if (!status && program->positions && positions[i] + given[i].n > program->positions)
            status = mmrt_fail(err, MMRT_ARGUMENT,
                               "a text of %llu tokens, where the model has embeddings of %llu "
                               "positions",
                               (unsigned long long)(positions[i] + given[i].n),
                               (unsigned long long)program->positions);
    }
    if (!status)
        put_in_order(parts, given, n_given, positions, tokens);
    if (!status)
        link_texts(parts);
    for (int32_t i = 0; !status && i < parts->n; i++) {
        const struct part *part = &parts->parts[i];
        status = mmrt_state_reserve(part->state, part->position + part->n, err);
    }
    for (int32_t i = 0; !status && i < n_given; i++)
        if (given[i].exact)
            status = mmrt_state_reserve_each(given[i].state, positions[i] + given[i].n, err);
    free(positions);
    return status;
}

void mmrt_parts_end(struct parts *parts, bool done) {
    for (int32_t i = 0; i < parts->n; i++) {
        const struct part *part = &parts->parts[i];
        if (!done)
            mmrt_state_abandon(part->state);
        else if (!part->next)
            mmrt_state_commit(part->state, part->position + part->n);
    }
    free(parts->parts);
    free(parts->tokens);
}
