#include "gguf/parser.h"
#include "base/status.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SMALLEST_ALIGNMENT = 8, LARGEST_ALIGNMENT = 1 << 30 };

/* Arrays within arrays: each is a call deeper here and in all who read them. */
enum { DEEPEST_ARRAY = 16 };

static const struct {
    const char *name;
    uint64_t size; /* bytes; 0 if it varies */
} value_types[] = {
    [MMRT_GGUF_UINT8] = {"uint8", 1},     [MMRT_GGUF_INT8] = {"int8", 1},
    [MMRT_GGUF_UINT16] = {"uint16", 2},   [MMRT_GGUF_INT16] = {"int16", 2},
    [MMRT_GGUF_UINT32] = {"uint32", 4},   [MMRT_GGUF_INT32] = {"int32", 4},
    [MMRT_GGUF_FLOAT32] = {"float32", 4}, [MMRT_GGUF_BOOL] = {"bool", 1},
    [MMRT_GGUF_STRING] = {"string", 0},   [MMRT_GGUF_ARRAY] = {"array", 0},
    [MMRT_GGUF_UINT64] = {"uint64", 8},   [MMRT_GGUF_INT64] = {"int64", 8},
    [MMRT_GGUF_FLOAT64] = {"float64", 8},
};
enum { N_VALUE_TYPES = sizeof value_types / sizeof *value_types };

static mmrt_status read_value_type(mmrt_parser *p, const char *field, mmrt_gguf_value_type *type) {
    uint64_t at = p->cursor.position;
    uint32_t number;
    mmrt_status status = mmrt_parse_u32(p, field, &number);
    if (status != MMRT_OK)
        return status;
    if (number >= N_VALUE_TYPES)
        return mmrt_parser_fail(p, MMRT_FORMAT, at, field, "found %" PRIu32 ", expected 0 to %d",
                                number, N_VALUE_TYPES - 1);
    *type = (mmrt_gguf_value_type)number;
    return MMRT_OK;
}

/* The fewest bytes that an element can take, where its size varies. */
static uint64_t smallest_element(mmrt_gguf_value_type type) {
    if (type == MMRT_GGUF_STRING)
        return 8;                                                    /* its length */
    return type == MMRT_GGUF_ARRAY ? 4 + 8 : value_types[type].size; /* its type and count */
}

/* Reads an array that lies within `depth` others. */
static mmrt_status read_array(mmrt_parser *p, mmrt_gguf_entry *entry, int depth) {
    uint64_t type_at = p->cursor.position;
    mmrt_status status = read_value_type(p, "element type", &entry->element_type);
    if (status != MMRT_OK)
        return status;
    if (entry->element_type == MMRT_GGUF_ARRAY && depth == DEEPEST_ARRAY)
        return mmrt_parser_fail(p, MMRT_UNSUPPORTED, type_at, "element type",
                                "found an array within more than %d others", DEEPEST_ARRAY);

    uint64_t count_at = p->cursor.position;
    status = mmrt_parse_u64(p, "element count", &entry->count);
    if (status != MMRT_OK)
        return status;
    uint64_t size = value_types[entry->element_type].size;
    uint64_t smallest = smallest_element(entry->element_type);
    uint64_t most = mmrt_cursor_left(&p->cursor) / smallest;
    if (entry->count > most)
        return mmrt_parser_fail(p, MMRT_FORMAT, count_at, "element count",
                                "found %" PRIu64 ", but the bytes left hold %" PRIu64 " at most",
                                entry->count, most);

    uint64_t start = p->cursor.position;
    entry->data = p->cursor.bytes + start;
    if (size)
        mmrt_cursor_skip(&p->cursor, entry->count * size);
    for (uint64_t i = 0; !size && i < entry->count; i++) {
        mmrt_gguf_entry within;
        uint64_t length;
        if (entry->element_type == MMRT_GGUF_ARRAY) {
            status = read_array(p, &within, depth + 1);
        } else {
            status = mmrt_parse_length(p, "string in array", &length);
            if (status == MMRT_OK)
                mmrt_cursor_skip(&p->cursor, length);
        }
        if (status != MMRT_OK)
            return status;
    }
    entry->size = p->cursor.position - start;
    return MMRT_OK;
}

static mmrt_status read_value(mmrt_parser *p, mmrt_gguf_entry *entry) {
    mmrt_status status = read_value_type(p, "value type", &entry->type);
    if (status != MMRT_OK)
        return status;
    if (entry->type == MMRT_GGUF_ARRAY)
        return read_array(p, entry, 0);

    entry->element_type = entry->type;
    entry->count = 1;
    uint64_t start = p->cursor.position;
    entry->data = p->cursor.bytes + start;
    if (entry->type == MMRT_GGUF_STRING) {
        uint64_t length;
        status = mmrt_parse_length(p, "string", &length);
        if (status != MMRT_OK)
            return status;
        mmrt_cursor_skip(&p->cursor, length);
    } else if (!mmrt_cursor_take(&p->cursor, value_types[entry->type].size)) {
        return mmrt_parser_truncated(p, "value");
    }
    entry->size = p->cursor.position - start;
    return MMRT_OK;
}

static bool key_is(const mmrt_gguf_entry *entry, const char *key) {
    return entry->key_length == strlen(key) && memcmp(entry->key, key, entry->key_length) == 0;
}

static mmrt_status set_alignment(mmrt_parser *p, const mmrt_gguf_entry *entry) {
    uint64_t at = (uint64_t)(entry->data - p->cursor.bytes);
    if (entry->type != MMRT_GGUF_UINT32)
        return mmrt_parser_fail(p, MMRT_FORMAT, at, "value",
                                "found a value of type %s, expected uint32",
                                value_types[entry->type].name);
    uint32_t alignment = mmrt_load_u32(entry->data);
    if (alignment < SMALLEST_ALIGNMENT || alignment > LARGEST_ALIGNMENT ||
        (alignment & (alignment - 1)) != 0)
        return mmrt_parser_fail(p, MMRT_FORMAT, at, "value",
                                "found %" PRIu32 ", expected a power of two from %d to %d",
                                alignment, SMALLEST_ALIGNMENT, LARGEST_ALIGNMENT);
    p->alignment = alignment;
    return MMRT_OK;
}

static mmrt_status check_keys(mmrt_parser *p) {
    const mmrt_gguf *gguf = p->gguf;
    mmrt_named *names = calloc(gguf->n_entries + 1, sizeof *names);
    if (!names)
        return mmrt_fail(p->err, MMRT_NO_MEMORY, "%s: no memory for its keys", p->path);
    for (uint64_t i = 0; i < gguf->n_entries; i++)
        names[i] = (mmrt_named){gguf->entries[i].key, gguf->entries[i].key_length, i};
    mmrt_status status =
        mmrt_parser_check_unique(p, names, gguf->n_entries, "metadata entry", "key");
    free(names);
    return status;
}

mmrt_status mmrt_parse_entries(mmrt_parser *p) {
    for (uint64_t i = 0; i < p->gguf->n_entries; i++) {
        mmrt_gguf_entry *entry = &p->gguf->entries[i];
        mmrt_parser_begin(p, "metadata entry", i);
        mmrt_status status = mmrt_parse_name(p, "key", &entry->key, &entry->key_length);
        if (status == MMRT_OK)
            status = read_value(p, entry);
        if (status == MMRT_OK && key_is(entry, "general.alignment"))
            status = set_alignment(p, entry);
        if (status != MMRT_OK)
            return status;
    }
    return check_keys(p);
}
