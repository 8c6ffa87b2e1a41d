#include "gguf/parser.h"
#include "base/status.h"
#include "gguf/utf8.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ------------------------------------------------------------------------------ */

mmrt_status mmrt_parser_fail(const mmrt_parser *p, mmrt_status status, uint64_t at,
                             const char *field, const char *format, ...) {
    char found[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(found, sizeof found, format, arguments);
    va_end(arguments);

    char part[128] = "";
    if (p->part) {
        int used = snprintf(part, sizeof part, "%s %" PRIu64 " ", p->part, p->index);
        if (p->name) {
            int shown = p->name_length < 64 ? (int)p->name_length : 64;
            snprintf(part + used, sizeof part - (size_t)used, "'%.*s' ", shown, p->name);
            for (char *c = part; *c; c++) /* a message is one line, whatever a name holds */
                if ((unsigned char)*c < ' ' || *c == 0x7f)
                    *c = '?';
        }
    }
    /* Of a very long path its end: the folder says less than the file's name. */
    size_t length = strlen(p->path);
    const char *path = length > 160 ? p->path + length - 160 : p->path;
    return mmrt_fail(p->err, status, "%s: %s%s at byte %" PRIu64 ": %s", path, part, field, at,
                     found);
}

mmrt_status mmrt_parser_truncated(const mmrt_parser *p, const char *field) {
    return mmrt_parser_fail(p, MMRT_FORMAT, p->cursor.position, field,
                            "the file ends too early, with %" PRIu64 " bytes left",
                            mmrt_cursor_left(&p->cursor));
}

void mmrt_parser_begin(mmrt_parser *p, const char *part, uint64_t index) {
    p->part = part;
    p->index = index;
    p->name = NULL;
}

void mmrt_parser_show_name(mmrt_parser *p, const char *name, uint64_t length) {
    p->name = name;
    p->name_length = length;
}

/* ---- pieces -------------------------------------------------------------------------------- */

mmrt_status mmrt_parse_u32(mmrt_parser *p, const char *field, uint32_t *value) {
    return mmrt_cursor_u32(&p->cursor, value) ? MMRT_OK : mmrt_parser_truncated(p, field);
}

mmrt_status mmrt_parse_u64(mmrt_parser *p, const char *field, uint64_t *value) {
    return mmrt_cursor_u64(&p->cursor, value) ? MMRT_OK : mmrt_parser_truncated(p, field);
}

mmrt_status mmrt_parse_length(mmrt_parser *p, const char *field, uint64_t *length) {
    uint64_t at = p->cursor.position;
    mmrt_status status = mmrt_parse_u64(p, field, length);
    if (status == MMRT_OK && *length > mmrt_cursor_left(&p->cursor))
        return mmrt_parser_fail(p, MMRT_FORMAT, at, field,
                                "found a length of %" PRIu64 ", but only %" PRIu64
                                " bytes are left",
                                *length, mmrt_cursor_left(&p->cursor));
    return status;
}

mmrt_status mmrt_parse_name(mmrt_parser *p, const char *field, const char **name,
                            uint64_t *length) {
    mmrt_status status = mmrt_parse_length(p, field, length);
    if (status != MMRT_OK)
        return status;
    uint64_t at = p->cursor.position;
    const unsigned char *bytes = mmrt_cursor_take(&p->cursor, *length);
    if (!mmrt_is_text(bytes, *length))
        return mmrt_parser_fail(p, MMRT_FORMAT, at, field,
                                "found bytes that are not UTF-8 text without NUL");
    *name = (const char *)bytes;
    mmrt_parser_show_name(p, *name, *length);
    return MMRT_OK;
}

mmrt_status mmrt_parse_count(mmrt_parser *p, const char *field, uint64_t smallest,
                             uint64_t *count) {
    uint64_t at = p->cursor.position;
    mmrt_status status = mmrt_parse_u64(p, field, count);
    if (status != MMRT_OK)
        return status;
    uint64_t most = mmrt_cursor_left(&p->cursor) / smallest;
    if (*count > most)
        return mmrt_parser_fail(p, MMRT_FORMAT, at, field,
                                "found %" PRIu64 ", but the bytes left hold %" PRIu64 " at most",
                                *count, most);
    return MMRT_OK;
}

/* ---- duplicates ------------------------------------------------------------------------------ */

static int compare_names(const void *left, const void *right) {
    const mmrt_named *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return memcmp(a->name, b->name, a->length);
}

mmrt_status mmrt_parser_check_unique(mmrt_parser *p, mmrt_named *names, uint64_t n,
                                     const char *part, const char *field) {
    qsort(names, n, sizeof *names, compare_names);
    for (uint64_t i = 1; i < n; i++) {
        const mmrt_named *one = &names[i - 1], *other = &names[i];
        if (compare_names(one, other) != 0)
            continue;
        const mmrt_named *first = one->index < other->index ? one : other;
        const mmrt_named *second = first == one ? other : one;
        mmrt_parser_begin(p, part, second->index);
        mmrt_parser_show_name(p, second->name, second->length);
        uint64_t at = (uint64_t)((const unsigned char *)second->name - p->cursor.bytes);
        return mmrt_parser_fail(p, MMRT_FORMAT, at, field, "found that of %s %" PRIu64 " again",
                                part, first->index);
    }
    return MMRT_OK;
}
