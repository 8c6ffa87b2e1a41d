/* A bounds-checked cursor over a file's bytes. Every check subtracts before it compares, so that no
 * hostile length can overflow, and nothing is read before it is checked. */
#ifndef MMRT_GGUF_CURSOR_H
#define MMRT_GGUF_CURSOR_H

#include "mmrt.h"

typedef struct mmrt_cursor {
    const unsigned char *bytes;
    uint64_t size;
    uint64_t position; /* <= size, always */

    mmrt_reading *reading; /* told of bytes before they are touched; may be NULL */
    void *context;
    uint64_t told;   /* bytes before this one have been announced, or are never touched */
    uint64_t window; /* bytes to announce next time */
} mmrt_cursor;

/* Announcements double from the first window to the last: a small header costs one small read, and
 * what is read beyond a large one stays small beside it. */
enum { MMRT_CURSOR_FIRST_WINDOW = 64 << 10, MMRT_CURSOR_LAST_WINDOW = 1 << 20 };

static inline uint64_t mmrt_cursor_left(const mmrt_cursor *c) {
    return c->size - c->position;
}

/* Announces the next window, which begins at the position and holds at least n (checked) bytes. */
static inline void mmrt_cursor_announce(mmrt_cursor *c, uint64_t n) {
    uint64_t start = c->position > c->told ? c->position : c->told;
    uint64_t needed = c->position + n - start;
    uint64_t length = needed > c->window ? needed : c->window;
    if (length > c->size - start)
        length = c->size - start;
    if (c->reading)
        c->reading(c->context, start, length);
    c->told = start + length;
    if (c->window < MMRT_CURSOR_LAST_WINDOW)
        c->window *= 2;
}

/* The next n bytes, which the caller may read, or NULL if fewer are left. */
static inline const unsigned char *mmrt_cursor_take(mmrt_cursor *c, uint64_t n) {
    if (n > mmrt_cursor_left(c))
        return NULL;
    if (c->position + n > c->told)
        mmrt_cursor_announce(c, n);
    const unsigned char *at = c->bytes + c->position;
    c->position += n;
    return at;
}

/* Steps over the next n bytes, untouched: false if fewer are left. */
static inline bool mmrt_cursor_skip(mmrt_cursor *c, uint64_t n) {
    if (n > mmrt_cursor_left(c))
        return false;
    c->position += n;
    return true;
}

static inline uint32_t mmrt_load_u32(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint64_t mmrt_load_u64(const unsigned char *at) {
    return (uint64_t)mmrt_load_u32(at) | (uint64_t)mmrt_load_u32(at + 4) << 32;
}

static inline bool mmrt_cursor_u32(mmrt_cursor *c, uint32_t *value) {
    const unsigned char *at = mmrt_cursor_take(c, 4);
    if (!at)
        return false;
    *value = mmrt_load_u32(at);
    return true;
}

static inline bool mmrt_cursor_u64(mmrt_cursor *c, uint64_t *value) {
    const unsigned char *at = mmrt_cursor_take(c, 8);
    if (!at)
        return false;
    *value = mmrt_load_u64(at);
    return true;
}

#endif
