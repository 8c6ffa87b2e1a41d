/* Where in pages and blocks each layer's part lies. */
#include "state/store.h"

#include "base/status.h"
#include "state/page.h"

#include <stdlib.h>
#include <unistd.h>

/* No sum of bytes overflows below these; memory ends long before. */
#define MOST_ELEMENTS    1e12 /* of one token's keys and values */
#define MOST_BLOCK_BYTES 1e15
enum { BLOCK_ALIGNMENT = 64 };

static uint32_t room_for(const mmrt_layer_state *layer, uint32_t dim) {
    const bool groups =
        layer->k_type == MMRT_TYPE_Q8_0 || (layer->v_type == MMRT_TYPE_Q8_0 && !layer->v_in_keys);
    const uint32_t whole = groups ? MMRT_GROUP : 16;
    return (dim + whole - 1) / whole * whole;
}

uint32_t mmrt_key_room(const mmrt_layer_state *layer) {
    return room_for(layer, layer->k_dim);
}

uint32_t mmrt_value_room(const mmrt_layer_state *layer) {
    return room_for(layer, layer->v_dim);
}

bool mmrt_heads_are_apart(const mmrt_layer_state *layer) {
    return layer->k_dim % 32 != 0;
}

static mmrt_status check_type(uint32_t layer, uint32_t type, mmrt_error *err) {
    const struct mmrt_format *format = mmrt_format_find(type);
    if (type == MMRT_TYPE_F16 || type == MMRT_TYPE_Q8_0)
        return MMRT_OK;
    return mmrt_fail(err, MMRT_UNSUPPORTED,
                     "layer %u: keys and values of type %s: only F16 and Q8_0 are supported", layer,
                     format ? format->name : "unknown");
}

static mmrt_status place_pages(mmrt_state_store *store, uint32_t index,
                               struct mmrt_state_layer *layer, mmrt_error *err) {
    const mmrt_layer_state *spec = &layer->spec;
    if (!spec->n_heads || !spec->k_dim)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "layer %u: %u key-value heads with keys of %u elements", index,
                         spec->n_heads, spec->k_dim);
    if (spec->v_in_keys && (spec->v_dim > spec->k_dim || spec->v_dim % MMRT_GROUP))
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "layer %u: values of %u elements within keys of %u: a multiple of %d, up "
                         "to all of them, runs",
                         index, spec->v_dim, spec->k_dim, MMRT_GROUP);
    const double widest = spec->k_dim > spec->v_dim ? spec->k_dim : spec->v_dim;
    if (widest > INT32_MAX || store->n_layers * widest * spec->n_heads > MOST_ELEMENTS)
        return mmrt_fail(
            err, MMRT_UNSUPPORTED,
            "layer %u: %u key-value heads of %.0f elements in each of %u layers do not fit into "
            "memory",
            index, spec->n_heads, widest, store->n_layers);
    mmrt_status status = check_type(index, spec->k_type, err);
    if (!status)
        status = check_type(index, spec->v_type, err);
    if (status)
        return status;
    const size_t system_page = (size_t)sysconf(_SC_PAGESIZE);
    layer->key_bytes = mmrt_page_bytes(spec->k_type, mmrt_key_room(spec));
    layer->page_bytes = layer->key_bytes;
    if (!spec->v_in_keys)
        layer->page_bytes += mmrt_page_bytes(spec->v_type, mmrt_value_room(spec));
    /* Whole pages of the system, so that they can be given back. */
    layer->head_bytes =
        (MMRT_EXTENT_PAGES * layer->page_bytes + system_page - 1) / system_page * system_page;
    layer->offset = store->extent_bytes;
    store->extent_bytes += spec->n_heads * layer->head_bytes;
    store->page_bytes += spec->n_heads * layer->page_bytes;
    while (layer->table < store->n_tables && store->slot_bytes[layer->table] != layer->page_bytes)
        layer->table++;
    if (layer->table == store->n_tables)
        store->slot_bytes[store->n_tables++] = layer->page_bytes;
    return MMRT_OK;
}

static mmrt_status place_block(mmrt_state_store *store, uint32_t index,
                               struct mmrt_state_layer *layer, mmrt_error *err) {
    const uint64_t bytes = layer->spec.block_bytes, whole = BLOCK_ALIGNMENT;
    if (!bytes || (double)store->n_layers * (double)bytes > MOST_BLOCK_BYTES)
        return mmrt_fail(err, MMRT_ARGUMENT, "layer %u: a block of %llu bytes", index,
                         (unsigned long long)bytes);
    layer->offset = store->block_bytes;
    store->block_bytes += (bytes + whole - 1) / whole * whole;
    return MMRT_OK;
}

static mmrt_status place_layer(mmrt_state_store *store, uint32_t index, mmrt_error *err) {
    struct mmrt_state_layer *layer = &store->layers[index];
    const mmrt_layer_state spec = layer->spec;
    switch (layer->spec.kind) {
    case MMRT_STATE_NOTHING: return MMRT_OK;
    case MMRT_STATE_PAGES: return place_pages(store, index, layer, err);
    case MMRT_STATE_BLOCK: return place_block(store, index, layer, err);
    case MMRT_STATE_PAGES_OF_LAYER:
        if (spec.layer >= index || store->layers[spec.layer].spec.kind != MMRT_STATE_PAGES)
            return mmrt_fail(err, MMRT_ARGUMENT,
                             "layer %u: reads the keys of layer %u, which is no earlier one that "
                             "has pages",
                             index, spec.layer);
        *layer = store->layers[spec.layer];
        layer->spec.kind = spec.kind;
        layer->spec.layer = spec.layer;
        layer->spec.window = spec.window;
        return MMRT_OK;
    }
    return mmrt_fail(err, MMRT_ARGUMENT, "layer %u: nothing known is kept (%d)", index,
                     (int)layer->spec.kind);
}

mmrt_status mmrt_state_lay_out(mmrt_state_store *store, const mmrt_layer_state *layers,
                               mmrt_error *err) {
    for (uint32_t i = 0; i < store->n_layers; i++) {
        store->layers[i].spec = layers[i];
        mmrt_status status = place_layer(store, i, err);
        if (status)
            return status;
    }
    return MMRT_OK;
}
