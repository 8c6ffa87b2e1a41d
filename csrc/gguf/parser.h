/* What the readers of a GGUF header share: where they are, and one way to say what is wrong. */
#ifndef MMRT_GGUF_PARSER_H
#define MMRT_GGUF_PARSER_H

#include "mmrt.h"
#include "gguf/cursor.h"

struct mmrt_gguf {
    uint32_t version;
    uint64_t header_size;
    uint64_t n_entries;
    uint64_t n_tensors;
    mmrt_gguf_entry *entries;
    mmrt_gguf_tensor *tensors;
};

typedef struct mmrt_parser {
    mmrt_cursor cursor;
    mmrt_gguf *gguf;
    uint64_t alignment; /* of the tensors' offsets */
    const char *path;
    mmrt_error *err;

    /* What is being read, for messages: "metadata entry" or "tensor", or NULL for the header. */
    const char *part;
    uint64_t index;
    const char *name; /* NULL until it is known to be text */
    uint64_t name_length;
} mmrt_parser;

/* Fails with "<path>: <part> <index> '<name>' <field> at byte <at>: <what was found>". */
mmrt_status mmrt_parser_fail(const mmrt_parser *p, mmrt_status status, uint64_t at,
                             const char *field, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* The same for a field that the end of the file cuts off. */
mmrt_status mmrt_parser_truncated(const mmrt_parser *p, const char *field);

/* What messages name from here on: the part, and its name once that is known. */
void mmrt_parser_begin(mmrt_parser *p, const char *part, uint64_t index);
void mmrt_parser_show_name(mmrt_parser *p, const char *name, uint64_t length);

mmrt_status mmrt_parse_u32(mmrt_parser *p, const char *field, uint32_t *value);
mmrt_status mmrt_parse_u64(mmrt_parser *p, const char *field, uint64_t *value);

/* Reads a length and checks that so many bytes follow. */
mmrt_status mmrt_parse_length(mmrt_parser *p, const char *field, uint64_t *length);

/* Reads how many of a part there are: no more than the bytes that are left can hold, when each
 * takes `smallest` bytes or more. So a count can be allocated for. */
mmrt_status mmrt_parse_count(mmrt_parser *p, const char *field, uint64_t smallest, uint64_t *count);

/* Reads a key or a tensor's name, which must be text, and shows it in messages from here on. */
mmrt_status mmrt_parse_name(mmrt_parser *p, const char *field, const char **name, uint64_t *length);

typedef struct mmrt_named {
    const char *name;
    uint64_t length;
    uint64_t index;
} mmrt_named;

/* Fails if two of the n names are the same. Sorts them: n log n steps whatever a file holds. */
mmrt_status mmrt_parser_check_unique(mmrt_parser *p, mmrt_named *names, uint64_t n,
                                     const char *part, const char *field);

/* Reads the gguf->n_entries metadata entries (metadata.c). */
mmrt_status mmrt_parse_entries(mmrt_parser *p);

/* Reads the gguf->n_tensors tensor records, which end the header, and sets where their data lies
 * (tensors.c). */
mmrt_status mmrt_parse_tensors(mmrt_parser *p);

#endif
