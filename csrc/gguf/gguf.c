#include "mmrt.h"
#include "base/status.h"
#include "gguf/parser.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The fewest bytes that an entry can take (key length, value type, a one-byte value) and a tensor
 * (name length, dimension count, no dimension, type, offset): they bound the counts in a header
 * before anything is allocated. */
enum { SMALLEST_ENTRY = 8 + 4 + 1, SMALLEST_TENSOR = 8 + 4 + 4 + 8 };

enum { DEFAULT_ALIGNMENT = 32 };

static mmrt_status read_magic(mmrt_parser *p) {
    const unsigned char *magic = mmrt_cursor_take(&p->cursor, 4);
    if (!magic)
        return mmrt_parser_truncated(p, "magic");
    if (memcmp(magic, "GGUF", 4) != 0)
        return mmrt_parser_fail(p, MMRT_FORMAT, 0, "magic",
                                "found %02x %02x %02x %02x, expected 47 47 55 46 (\"GGUF\")",
                                magic[0], magic[1], magic[2], magic[3]);
    return MMRT_OK;
}

static mmrt_status read_version(mmrt_parser *p) {
    uint64_t at = p->cursor.position;
    uint32_t version;
    mmrt_status status = mmrt_parse_u32(p, "version", &version);
    if (status != MMRT_OK)
        return status;
    if (version == 0)
        return mmrt_parser_fail(p, MMRT_FORMAT, at, "version", "found 0, expected 2 or 3");
    if ((version & 0xffff) == 0)
        return mmrt_parser_fail(p, MMRT_UNSUPPORTED, at, "version",
                                "the file is big-endian, expected little-endian");
    if (version != 2 && version != 3)
        return mmrt_parser_fail(p, MMRT_UNSUPPORTED, at, "version",
                                "found %" PRIu32 ", expected 2 or 3", version);
    p->gguf->version = version;
    return MMRT_OK;
}

static mmrt_status read_file(mmrt_parser *p) {
    mmrt_gguf *gguf = p->gguf;
    mmrt_status status = read_magic(p);
    if (status == MMRT_OK)
        status = read_version(p);
    if (status == MMRT_OK)
        status = mmrt_parse_count(p, "tensor count", SMALLEST_TENSOR, &gguf->n_tensors);
    if (status == MMRT_OK)
        status = mmrt_parse_count(p, "metadata count", SMALLEST_ENTRY, &gguf->n_entries);
    if (status != MMRT_OK)
        return status;

    gguf->entries = calloc(gguf->n_entries + 1, sizeof *gguf->entries);
    gguf->tensors = calloc(gguf->n_tensors + 1, sizeof *gguf->tensors);
    if (!gguf->entries || !gguf->tensors)
        return mmrt_fail(p->err, MMRT_NO_MEMORY,
                         "%s: no memory for %" PRIu64 " metadata entries and %" PRIu64 " tensors",
                         p->path, gguf->n_entries, gguf->n_tensors);

    status = mmrt_parse_entries(p);
    return status == MMRT_OK ? mmrt_parse_tensors(p) : status;
}

mmrt_status mmrt_gguf_parse(const void *bytes, uint64_t size, const char *path,
                            mmrt_reading *reading, void *context, mmrt_gguf **out,
                            mmrt_error *err) {
    *out = NULL;
    mmrt_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf)
        return mmrt_fail(err, MMRT_NO_MEMORY, "%s: no memory for its directory", path);
    mmrt_parser p = {
        .cursor = {.bytes = bytes,
                   .size = size,
                   .reading = reading,
                   .context = context,
                   .window = MMRT_CURSOR_FIRST_WINDOW},
        .gguf = gguf,
        .alignment = DEFAULT_ALIGNMENT,
        .path = path,
        .err = err,
    };
    mmrt_status status = read_file(&p);
    if (status != MMRT_OK)
        mmrt_gguf_free(gguf);
    else
        *out = gguf;
    return status;
}

void mmrt_gguf_free(mmrt_gguf *gguf) {
    if (!gguf)
        return;
    free(gguf->entries);
    free(gguf->tensors);
    free(gguf);
}

uint32_t mmrt_gguf_version(const mmrt_gguf *gguf) {
    return gguf->version;
}

uint64_t mmrt_gguf_header_size(const mmrt_gguf *gguf) {
    return gguf->header_size;
}

uint64_t mmrt_gguf_n_entries(const mmrt_gguf *gguf) {
    return gguf->n_entries;
}

uint64_t mmrt_gguf_n_tensors(const mmrt_gguf *gguf) {
    return gguf->n_tensors;
}

const mmrt_gguf_entry *mmrt_gguf_entry_at(const mmrt_gguf *gguf, uint64_t index) {
    return index < gguf->n_entries ? &gguf->entries[index] : NULL;
}

const mmrt_gguf_tensor *mmrt_gguf_tensor_at(const mmrt_gguf *gguf, uint64_t index) {
    return index < gguf->n_tensors ? &gguf->tensors[index] : NULL;
}
