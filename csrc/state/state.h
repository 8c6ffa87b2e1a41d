/* What a model keeps of sequences, as steps use it: where things lie, and how a step writes them.
 *
 * A step reserves, writes, and then commits or abandons. What it reserves is the sequence's alone:
 * nothing that another holds too is ever written. */
#ifndef MMRT_STATE_H
#define MMRT_STATE_H

#include "mmrt.h"

/* Where a layer's part lies. Of a layer without pages of its own it is that of the layer that it
 * reads. */
struct mmrt_state_layer {
    mmrt_layer_state spec;
    uint32_t table;    /* PAGES: the table of addresses that it reads; see mmrt_state_pages */
    uint64_t offset;   /* PAGES: from there to the keys of head 0; BLOCK: from the block's start */
    size_t head_bytes; /* from one head's keys to the next one's */
    size_t key_bytes;  /* a head's values follow its keys */
    size_t page_bytes; /* of one head's keys and values in a page */
};

uint32_t mmrt_state_n_layers(const mmrt_state_store *store);

/* NULL: there is no such layer. */
const struct mmrt_state_layer *mmrt_state_layer_at(const mmrt_state_store *store, uint32_t layer);

/* Bytes from a page's address to the keys and values of a head, laid out as page.h says. */
static inline size_t mmrt_state_keys_at(const struct mmrt_state_layer *layer, uint32_t head) {
    return layer->offset + head * layer->head_bytes;
}

static inline size_t mmrt_state_values_at(const struct mmrt_state_layer *layer, uint32_t head) {
    return mmrt_state_keys_at(layer, head) + layer->key_bytes;
}

mmrt_state_store *mmrt_state_store_of(const mmrt_state *state);

/* Another user of the store, who calls mmrt_state_store_free. */
mmrt_state_store *mmrt_state_store_use(mmrt_state_store *store);

/* Makes room for the sequence to become `length` tokens long. This is the one place where memory
 * that several sequences hold is copied. NO_MEMORY leaves the sequence as it was committed. */
mmrt_status mmrt_state_reserve(mmrt_state *state, uint64_t length, mmrt_error *err);

/* Has the step that was reserved for leave a block after each of its tokens, MMRT_EXACT_TOKENS at
 * most: until its next step the sequence can go back to any of them. */
mmrt_status mmrt_state_reserve_each(mmrt_state *state, uint64_t length, mmrt_error *err);

/* The addresses of the pages of one table, in order; page i holds tokens 32 i to 32 i + 31. They
 * hold until the next reserve, rewind or abandon. */
uint8_t *const *mmrt_state_pages(const mmrt_state *state, uint32_t table);

/* The block of all layers that keep one, as the tokens before this step left it (at first, zeros);
 * and the one that this step is to fill, whatever it holds. 64-byte aligned. */
const uint8_t *mmrt_state_block(const mmrt_state *state);
uint8_t *mmrt_state_next_block(const mmrt_state *state);

/* The block to be filled with what the first `length` tokens leave, where that of each is kept;
 * else the next one. */
uint8_t *mmrt_state_block_after(const mmrt_state *state, uint64_t length);

/* The tokens before `length`, all reserved, are written: they are the sequence now. */
void mmrt_state_commit(mmrt_state *state, uint64_t length);

/* The sequence is what was last committed; pages reserved beyond it are given back. */
void mmrt_state_abandon(mmrt_state *state);

#endif
