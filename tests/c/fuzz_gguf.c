/* Fuzzes the GGUF parser: any bytes at all give a directory or a refusal, and no read out of
 * bounds.
 *
 * With libFuzzer:  clang -fsanitize=fuzzer,address,undefined -DMMRT_LIBFUZZER ...
 *                  ./fuzz_gguf tests/hostile/gguf
 * Without it:      ./fuzz_gguf MUTATIONS FILE...  runs each file and MUTATIONS deterministic
 *                  changes of it. tests/test_core.py builds and runs this one. */
#include "mmrt.h"
#include "gguf_bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned char *bytes = exact_copy(data, size);
    if (!bytes)
        return 0;
    mmrt_error error;
    mmrt_status status = parse_and_touch(bytes, size, &error);
    if (status != MMRT_OK && (error.status != status || !error.message[0]))
        abort(); /* a refusal without its reason */
    free(bytes);
    return 0;
}

#ifndef MMRT_LIBFUZZER

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t next_random(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1d;
}

/* Changes one to four places: a bit, a byte, a word set to a telling value, or the length. */
static size_t mutate(unsigned char *bytes, size_t size) {
    static const uint64_t telling[] = {
        0,
        1,
        7,
        8,
        9,
        13,
        31,
        32,
        255,
        65535,
        1u << 31,
        UINT32_MAX,
        UINT64_C(1) << 61,
        INT64_MAX,
        UINT64_MAX - 31,
        UINT64_MAX,
    };
    for (uint64_t n = 1 + next_random() % 4; n > 0 && size > 8; n--) {
        size_t at = next_random() % (size - 8);
        uint64_t value = telling[next_random() % (sizeof telling / sizeof *telling)];
        switch (next_random() % 5) {
        case 0: bytes[at] ^= (unsigned char)(1u << next_random() % 8); break;
        case 1: bytes[at] = (unsigned char)next_random(); break;
        case 2: memcpy(bytes + at, &value, 4); break;
        case 3: memcpy(bytes + at, &value, 8); break;
        default: size -= next_random() % (size / 4 + 1); break;
        }
    }
    return size;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s MUTATIONS FILE...\n", argv[0]);
        return 2;
    }
    long mutations = atol(argv[1]);
    for (int i = 2; i < argc; i++) {
        size_t size;
        unsigned char *bytes = read_whole(argv[i], &size);
        if (!bytes) {
            perror(argv[i]);
            return 1;
        }
        LLVMFuzzerTestOneInput(bytes, size);
        for (long m = 0; m < mutations; m++) {
            unsigned char *changed = exact_copy(bytes, size);
            LLVMFuzzerTestOneInput(changed, mutate(changed, size));
            free(changed);
        }
        free(bytes);
    }
    return 0;
}

#endif
