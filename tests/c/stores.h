/* Stores of layers of several kinds. */
#ifndef MMRT_TESTS_STORES_H
#define MMRT_TESTS_STORES_H

#include "texts.h"

/* ---- layers ---- */

#define PAGES(heads, k, v, type)                                                                   \
    {.kind = MMRT_STATE_PAGES,                                                                     \
     .n_heads = heads,                                                                             \
     .k_dim = k,                                                                                   \
     .v_dim = v,                                                                                   \
     .k_type = type,                                                                               \
     .v_type = type}
#define BLOCK(n) {.kind = MMRT_STATE_BLOCK, .block_bytes = n}

/* All alike; a page of each head is two pages of the system. */
static const mmrt_layer_state alike[] = {PAGES(2, 64, 64, MMRT_TYPE_F16),
                                         PAGES(2, 64, 64, MMRT_TYPE_F16)};

/* All unlike, in parts that are no whole pages of the system. */
static const mmrt_layer_state unlike[] = {
    PAGES(1, 48, 48, MMRT_TYPE_Q8_0), {.kind = MMRT_STATE_NOTHING},
    PAGES(3, 32, 16, MMRT_TYPE_F16),  {.kind = MMRT_STATE_PAGES_OF_LAYER, .layer = 0, .window = 7},
    PAGES(1, 80, 0, MMRT_TYPE_F16),   PAGES(2, 16, 32, MMRT_TYPE_F16),
};

static const mmrt_layer_state with_blocks[] = {
    BLOCK(100), PAGES(1, 16, 16, MMRT_TYPE_F16), BLOCK(5000), {.kind = MMRT_STATE_NOTHING}};

static const mmrt_layer_state only_a_block[] = {BLOCK(64)};

#define STORE(layers) make_store(layers, sizeof(layers) / sizeof *(layers))

static mmrt_state_store *make_store(const mmrt_layer_state *layers, size_t n) {
    mmrt_state_store *store = NULL;
    CHECK(mmrt_state_store_create(layers, (uint32_t)n, &store, &error) == MMRT_OK);
    return store;
}

/* The store has nothing left, and goes. */
static void end_store(mmrt_state_store *store) {
    CHECK(mmrt_state_store_bytes(store) == 0);
    mmrt_state_store_free(store);
}

#endif
