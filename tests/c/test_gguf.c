/* The GGUF parser on a small file that is built here, field by field. Run with the path of
 * tests/hostile/gguf/valid.gguf to also cut that file at every byte. */
#include "mmrt.h"
#include "check.h"
#include "gguf/cursor.h"
#include "gguf/utf8.h"
#include "gguf_bytes.h"

typedef struct builder {
    unsigned char bytes[1024];
    size_t size;
} builder;

static void put(builder *b, const void *bytes, size_t size) {
    memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

static void put_u32(builder *b, uint32_t value) {
    put(b, &value, sizeof value);
}

static void put_u64(builder *b, uint64_t value) {
    put(b, &value, sizeof value);
}

static void put_string(builder *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void put_tensor(builder *b, const char *name, uint64_t row, uint64_t rows, uint32_t type,
                       uint64_t offset) {
    put_string(b, name);
    put_u32(b, 2);
    put_u64(b, row);
    put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

/* Two entries (a string; an array of two strings) and two tensors (F32 4 x 2, Q8_0 32 x 1). */
static builder small_file(void) {
    builder b = {.size = 0};
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, 2);
    put_u64(&b, 2);
    put_string(&b, "general.architecture");
    put_u32(&b, MMRT_GGUF_STRING);
    put_string(&b, "llama");
    put_string(&b, "words");
    put_u32(&b, MMRT_GGUF_ARRAY);
    put_u32(&b, MMRT_GGUF_STRING);
    put_u64(&b, 2);
    put_string(&b, "one");
    put_string(&b, "");
    put_tensor(&b, "first", 4, 2, 0, 0);
    put_tensor(&b, "second", 32, 1, 8, 32);
    while (b.size % 32)
        b.bytes[b.size++] = 0;
    b.size += 32 + 34;
    return b;
}

static void test_directory(void) {
    builder b = small_file();
    mmrt_gguf *gguf;
    mmrt_error error;
    CHECK_STATUS(mmrt_gguf_parse(b.bytes, b.size, "f", NULL, NULL, &gguf, &error), MMRT_OK, &error,
                 "");
    CHECK(mmrt_gguf_version(gguf) == 3);
    CHECK(mmrt_gguf_n_entries(gguf) == 2 && mmrt_gguf_n_tensors(gguf) == 2);
    CHECK(mmrt_gguf_header_size(gguf) == b.size - 66);
    CHECK(!mmrt_gguf_entry_at(gguf, 2) && !mmrt_gguf_tensor_at(gguf, UINT64_MAX));

    const mmrt_gguf_entry *words = mmrt_gguf_entry_at(gguf, 1);
    CHECK(words->key_length == 5 && memcmp(words->key, "words", 5) == 0);
    CHECK(words->type == MMRT_GGUF_ARRAY && words->element_type == MMRT_GGUF_STRING);
    CHECK(words->count == 2 && words->size == 8 + 3 + 8 && words->data[8] == 'o');

    const mmrt_gguf_tensor *second = mmrt_gguf_tensor_at(gguf, 1);
    CHECK(second->name_length == 6 && memcmp(second->name, "second", 6) == 0);
    CHECK(second->type == 8 && second->n_dims == 2 && mmrt_gguf_dim(second, 0) == 32);
    CHECK(mmrt_gguf_dim(second, 1) == 1 && mmrt_gguf_dim(second, 3) == 1 && second->size == 34);
    CHECK(second->offset == mmrt_gguf_header_size(gguf) + 32);
    mmrt_gguf_free(gguf);
    mmrt_gguf_free(NULL);
}

/* Every cut is refused, without a read past it, and with or without room for a message. */
static void test_truncation(const unsigned char *bytes, size_t size) {
    for (size_t cut = 0; cut < size; cut++) {
        unsigned char *copy = exact_copy(bytes, cut);
        mmrt_error error = {0};
        CHECK(parse_and_touch(copy, cut, &error) == MMRT_FORMAT);
        CHECK(error.status == MMRT_FORMAT && strstr(error.message, "at byte"));
        CHECK(parse_and_touch(copy, cut, NULL) == MMRT_FORMAT);
        free(copy);
    }
}

typedef struct seen {
    uint64_t calls, first, end;
    bool rising;
} seen;

static void note(void *context, uint64_t offset, uint64_t length) {
    seen *s = context;
    s->rising = (s->calls == 0 || (s->rising && offset >= s->end)) && length > 0;
    s->first = s->calls++ ? s->first : offset;
    s->end = offset + length;
}

/* A long array is announced in rising windows that stay near the header. */
static void test_reading(void) {
    const size_t n = 400000, size = 24 + 8 + 1 + 4 + 4 + 8 + n * 9 + (4u << 20);
    unsigned char *bytes = calloc(1, size);
    builder b = {.size = 0};
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, 0);
    put_u64(&b, 1);
    put_string(&b, "k");
    put_u32(&b, MMRT_GGUF_ARRAY);
    put_u32(&b, MMRT_GGUF_STRING);
    put_u64(&b, n);
    memcpy(bytes, b.bytes, b.size);
    for (size_t i = 0; i < n; i++)
        bytes[b.size + 9 * i] = 1;

    seen s = {0};
    mmrt_gguf *gguf;
    CHECK(mmrt_gguf_parse(bytes, size, "f", note, &s, &gguf, NULL) == MMRT_OK);
    uint64_t header = b.size + 9 * n;
    CHECK(s.rising && s.first == 0 && s.calls >= 5);
    CHECK(s.end >= header && s.end < header + MMRT_CURSOR_LAST_WINDOW);
    mmrt_gguf_free(gguf);
    free(bytes);
}

static void test_cursor(void) {
    const unsigned char bytes[8] = {1, 0, 0, 0x80, 0, 0, 0, 0x40};
    mmrt_cursor c = {.bytes = bytes, .size = sizeof bytes, .window = 1};
    uint64_t value = 0;
    CHECK(!mmrt_cursor_take(&c, 9) && !mmrt_cursor_take(&c, UINT64_MAX));
    CHECK(mmrt_cursor_u64(&c, &value) && value == UINT64_C(0x4000000080000001));
    CHECK(!mmrt_cursor_skip(&c, 1) && mmrt_cursor_skip(&c, 0) && mmrt_cursor_left(&c) == 0);
}

static bool is_text(const char *text) {
    return mmrt_is_text((const unsigned char *)text, strlen(text));
}

static void test_text(void) {
    CHECK(is_text("") && is_text("plain") && is_text("\xc3\xa9\xe2\x98\x83\xf0\x9f\x90\xa7"));
    CHECK(is_text("\xed\x9f\xbf") && is_text("\xee\x80\x80") && is_text("\xf4\x8f\xbf\xbf"));
    CHECK(!is_text("\x80") && !is_text("\xc3") && !is_text("\xe2\x98") && !is_text("\xff"));
    CHECK(!is_text("\xc1\xbf") && !is_text("\xe0\x9f\xbf") && !is_text("\xf0\x8f\xbf\xbf"));
    CHECK(!is_text("\xed\xa0\x80") && !is_text("\xf4\x90\x80\x80") && !is_text("\xc3\x28"));
    CHECK(!mmrt_is_text((const unsigned char *)"a\0b", 3));
}

/* A long path leaves room for what matters. */
static void test_long_path(void) {
    char path[1000];
    memset(path, 'p', sizeof path);
    path[sizeof path - 1] = 0;
    mmrt_gguf *gguf;
    mmrt_error error;
    CHECK_STATUS(mmrt_gguf_parse("FUGG", 4, path, NULL, NULL, &gguf, &error), MMRT_FORMAT, &error,
                 "magic at byte 0: found 46 55 47 47, expected");
    CHECK(!gguf);
}

int main(int argc, char **argv) {
    builder b = small_file();
    test_directory();
    test_truncation(b.bytes, b.size);
    test_reading();
    test_cursor();
    test_text();
    test_long_path();
    if (argc > 1) {
        size_t size;
        unsigned char *bytes = read_whole(argv[1], &size);
        CHECK(bytes);
        CHECK(bytes && parse_and_touch(bytes, size, NULL) == MMRT_OK);
        if (bytes)
            test_truncation(bytes, size);
        free(bytes);
    }
    return check_result();
}
