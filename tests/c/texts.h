/* Sequences that know what they have read: every part of each token is marked, so that a look at a
 * sequence tells whether it is what it wrote. */
#ifndef MMRT_TESTS_TEXTS_H
#define MMRT_TESTS_TEXTS_H

#include "check.h"
#include "state/page.h"
#include "state/state.h"

#include <stdbool.h>

static mmrt_error error;

enum { MOST_TOKENS = 700 };

struct text {
    mmrt_state *state;
    uint64_t n;
    uint8_t tokens[MOST_TOKENS];
};

static struct text new_text(mmrt_state_store *store) {
    struct text text = {0};
    CHECK(mmrt_state_create(store, &text.state, &error) == MMRT_OK);
    return text;
}

static struct text fork_text(const struct text *from) {
    struct text text = *from;
    CHECK(mmrt_state_fork(from->state, &text.state, &error) == MMRT_OK);
    return text;
}

static void end_text(struct text *text) {
    mmrt_state_free(text->state);
    text->state = NULL;
}

static uint32_t mixed(uint32_t x) {
    x = (x ^ x >> 15) * 2246822519u;
    return (x ^ x >> 13) * 3266489917u;
}

/* The byte that a token's part in a layer and head is filled with. */
static uint8_t mark(const struct text *text, uint64_t i, uint32_t layer, uint32_t head) {
    return (uint8_t)(mixed((uint32_t)(i * 64 + layer * 8 + head) * 256 + text->tokens[i]) >> 8);
}

/* What a layer's block says of the first n tokens. */
static uint32_t sum_of(const struct text *text, uint64_t n, uint32_t layer) {
    uint32_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum = mixed(sum + text->tokens[i] + layer + 1);
    return sum;
}

static bool all_are(const uint8_t *bytes, uint8_t value, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* Writes, or looks at, a token's part of all layers: a 32nd of each head's keys and values. */
static bool token_parts(const struct text *text, uint64_t i, bool write) {
    const mmrt_state_store *store = mmrt_state_store_of(text->state);
    const uint64_t slot = i % MMRT_PAGE_KEYS;
    bool right = true;
    for (uint32_t l = 0; l < mmrt_state_n_layers(store); l++) {
        const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, l);
        const bool borrows = layer->spec.kind == MMRT_STATE_PAGES_OF_LAYER;
        if (layer->spec.kind != MMRT_STATE_PAGES && !borrows)
            continue;
        uint8_t *page = mmrt_state_pages(text->state, layer->table)[i / MMRT_PAGE_KEYS];
        const size_t k = layer->key_bytes / MMRT_PAGE_KEYS;
        const size_t v = (layer->page_bytes - layer->key_bytes) / MMRT_PAGE_KEYS;
        for (uint32_t head = 0; head < layer->spec.n_heads; head++) {
            uint8_t *key = page + mmrt_state_keys_at(layer, head) + slot * k;
            uint8_t *value = page + mmrt_state_values_at(layer, head) + slot * v;
            const uint8_t byte = mark(text, i, borrows ? layer->spec.layer : l, head);
            if (write && !borrows) {
                memset(key, byte, k);
                memset(value, (uint8_t)~byte, v);
            }
            right &= all_are(key, byte, k) && all_are(value, (uint8_t)~byte, v);
        }
    }
    return right;
}

/* Fills the next block by what the present one says. */
static void write_block(const struct text *text, uint64_t before, uint64_t n) {
    const mmrt_state_store *store = mmrt_state_store_of(text->state);
    for (uint32_t l = 0; l < mmrt_state_n_layers(store); l++) {
        const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, l);
        if (layer->spec.kind != MMRT_STATE_BLOCK)
            continue;
        const uint8_t *now = mmrt_state_block(text->state) + layer->offset;
        uint8_t *next = mmrt_state_next_block(text->state) + layer->offset;
        uint32_t sum;
        memcpy(&sum, now + layer->spec.block_bytes - sizeof sum, sizeof sum);
        CHECK(sum == sum_of(text, before, l));
        sum = sum_of(text, n, l);
        memset(next, 1, layer->spec.block_bytes);
        memcpy(next + layer->spec.block_bytes - sizeof sum, &sum, sizeof sum);
    }
}

static void scribble(struct text *text, uint64_t n, uint32_t seed) {
    const uint64_t before = text->n, end = before + n;
    CHECK(mmrt_state_reserve(text->state, end, &error) == MMRT_OK);
    for (uint64_t i = before; i < end; i++) {
        text->tokens[i] = (uint8_t)mixed(seed + (uint32_t)i);
        token_parts(text, i, true);
    }
    write_block(text, before, end);
}

/* A step of n tokens. */
static void extend(struct text *text, uint64_t n, uint32_t seed) {
    scribble(text, n, seed);
    text->n += n;
    mmrt_state_commit(text->state, text->n);
}

/* A step that comes to nothing. */
static void fail_to_extend(struct text *text, uint64_t n, uint32_t seed) {
    struct text lost = *text;
    scribble(&lost, n, seed);
    mmrt_state_abandon(text->state);
}

static void rewind_text(struct text *text, uint64_t length) {
    text->n = mmrt_state_rewind(text->state, length);
}

static void check_text(const struct text *text) {
    bool right = mmrt_state_length(text->state) == text->n;
    for (uint64_t i = 0; i < text->n; i++)
        right &= token_parts(text, i, false);
    CHECK(right);
}

static uint64_t pages_of(uint64_t n) {
    return (n + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS;
}

#endif
