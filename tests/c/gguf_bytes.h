/* Bytes of a GGUF file, held in a block of exactly their size so that AddressSanitizer sees every
 * read past them, and a walk over all that a parse hands out. */
#ifndef MMRT_TESTS_GGUF_BYTES_H
#define MMRT_TESTS_GGUF_BYTES_H

#include "mmrt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline unsigned char *exact_copy(const void *bytes, size_t size) {
    unsigned char *copy = malloc(size ? size : 1);
    if (copy && size)
        memcpy(copy, bytes, size);
    return copy;
}

static inline unsigned char *read_whole(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*size ? *size : 1);
    if (bytes && fread(bytes, 1, *size, file) != *size) {
        free(bytes);
        bytes = NULL;
    }
    fclose(file);
    return bytes;
}

static inline unsigned sum(const void *bytes, uint64_t size) {
    unsigned total = 0;
    for (uint64_t i = 0; i < size; i++)
        total += ((const unsigned char *)bytes)[i];
    return total;
}

/* Parses, then reads every byte of every key, value, name and tensor. */
static inline mmrt_status parse_and_touch(const unsigned char *bytes, size_t size,
                                          mmrt_error *err) {
    mmrt_gguf *gguf;
    mmrt_status status = mmrt_gguf_parse(bytes, size, "input", NULL, NULL, &gguf, err);
    if (status != MMRT_OK)
        return status;
    volatile unsigned total = 0;
    for (uint64_t i = 0; i < mmrt_gguf_n_entries(gguf); i++) {
        const mmrt_gguf_entry *entry = mmrt_gguf_entry_at(gguf, i);
        total += sum(entry->key, entry->key_length) + sum(entry->data, entry->size);
    }
    for (uint64_t i = 0; i < mmrt_gguf_n_tensors(gguf); i++) {
        const mmrt_gguf_tensor *tensor = mmrt_gguf_tensor_at(gguf, i);
        total += sum(tensor->name, tensor->name_length);
        total += sum(bytes + tensor->offset, tensor->size);
        if (tensor->offset < mmrt_gguf_header_size(gguf))
            abort();
    }
    (void)total;
    mmrt_gguf_free(gguf);
    return MMRT_OK;
}

#endif
