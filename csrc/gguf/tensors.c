#include "gguf/parser.h"
#include "base/status.h"
#include "quant/quant.h"

#include <inttypes.h>
#include <stdlib.h>

enum { MOST_DIMS = 64 }; /* as many as arrays have anywhere */

uint64_t mmrt_gguf_dim(const mmrt_gguf_tensor *tensor, uint32_t dimension) {
    return dimension < tensor->n_dims ? mmrt_load_u64(tensor->dims + 8 * (size_t)dimension) : 1;
}

/* Sets the tensor's size in bytes from its type and dimensions; 0 for a type that is unknown. */
static mmrt_status measure_tensor(const mmrt_parser *p, mmrt_gguf_tensor *tensor,
                                  uint64_t dims_at) {
    const struct mmrt_format *format = mmrt_format_find(tensor->type);
    if (!format)
        return MMRT_OK;
    const uint64_t row = mmrt_gguf_dim(tensor, 0);
    if (row % format->elements != 0)
        return mmrt_parser_fail(p, MMRT_FORMAT, dims_at, "dimension 0",
                                "found rows of %" PRIu64
                                " elements, expected a multiple of the block of %u",
                                row, (unsigned)format->elements);

    uint64_t size;
    bool overflow = __builtin_mul_overflow(row / format->elements, (uint64_t)format->bytes, &size);
    for (uint32_t d = 1; d < tensor->n_dims; d++)
        overflow |= __builtin_mul_overflow(size, mmrt_gguf_dim(tensor, d), &size);
    if (overflow)
        return mmrt_parser_fail(p, MMRT_FORMAT, dims_at, "dimensions",
                                "their product passes 2^64 bytes");
    tensor->size = size;
    return MMRT_OK;
}

/* Reads a tensor's record; its offset stays relative to the end of the header for now. */
static mmrt_status read_tensor(mmrt_parser *p, mmrt_gguf_tensor *tensor) {
    mmrt_status status = mmrt_parse_name(p, "name", &tensor->name, &tensor->name_length);
    if (status != MMRT_OK)
        return status;

    uint64_t n_dims_at = p->cursor.position;
    status = mmrt_parse_u32(p, "dimension count", &tensor->n_dims);
    if (status != MMRT_OK)
        return status;
    if (tensor->n_dims > MOST_DIMS)
        return mmrt_parser_fail(p, MMRT_FORMAT, n_dims_at, "dimension count",
                                "found %" PRIu32 ", expected %d at most", tensor->n_dims,
                                MOST_DIMS);

    uint64_t dims_at = p->cursor.position;
    tensor->dims = p->cursor.bytes + dims_at;
    for (uint32_t d = 0; d < tensor->n_dims; d++) {
        uint64_t passed;
        status = mmrt_parse_u64(p, "dimension", &passed);
        if (status != MMRT_OK)
            return status;
    }

    status = mmrt_parse_u32(p, "type", &tensor->type);
    if (status == MMRT_OK)
        status = measure_tensor(p, tensor, dims_at);
    if (status != MMRT_OK)
        return status;

    uint64_t offset_at = p->cursor.position;
    status = mmrt_parse_u64(p, "offset", &tensor->offset);
    if (status == MMRT_OK && tensor->offset % p->alignment != 0)
        return mmrt_parser_fail(p, MMRT_FORMAT, offset_at, "offset",
                                "found %" PRIu64 ", expected a multiple of the alignment, %" PRIu64,
                                tensor->offset, p->alignment);
    return status;
}

/* Where in the file the tensor's record keeps its offset. */
static uint64_t offset_field(const mmrt_parser *p, const mmrt_gguf_tensor *tensor) {
    const unsigned char *name = (const unsigned char *)tensor->name;
    return (uint64_t)(name - p->cursor.bytes) + tensor->name_length + 4 + 8 * tensor->n_dims + 4;
}

static bool is_empty(const mmrt_gguf_tensor *tensor) {
    for (uint32_t d = 0; d < tensor->n_dims; d++)
        if (!mmrt_gguf_dim(tensor, d))
            return true;
    return false;
}

static int compare_offsets(const void *left, const void *right) {
    const mmrt_gguf_tensor *a = *(mmrt_gguf_tensor *const *)left;
    const mmrt_gguf_tensor *b = *(mmrt_gguf_tensor *const *)right;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* Those that have elements, by where they lie; returns how many. */
static uint64_t sort_by_offset(const mmrt_gguf *gguf, mmrt_gguf_tensor **order) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        if (!is_empty(&gguf->tensors[i]))
            order[n++] = &gguf->tensors[i];
    qsort(order, n, sizeof *order, compare_offsets);
    return n;
}

/* There are files that have PQ2_0 under the id of Q2_0. It takes 34 bytes where Q2_0 takes 36, and
 * so it is if some tensor has no room for these before the next one, or in all of `room`. */
static void tell_q2_apart(const mmrt_gguf *gguf, mmrt_gguf_tensor **order, uint64_t room) {
    const uint64_t n = sort_by_offset(gguf, order);
    bool fits = true, whole = true;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t end = i + 1 < n && order[i + 1]->offset < room ? order[i + 1]->offset : room;
        if (order[i]->type != MMRT_TYPE_Q2_0)
            continue;
        fits &= order[i]->offset <= end && order[i]->size <= end - order[i]->offset;
        whole &= mmrt_gguf_dim(order[i], 0) % MMRT_ELEMENTS_PQ2_0 == 0;
    }
    for (uint64_t i = 0; !fits && whole && i < n; i++)
        if (order[i]->type == MMRT_TYPE_Q2_0) {
            order[i]->type = MMRT_TYPE_PQ2_0;
            order[i]->size = order[i]->size / (2 * MMRT_BYTES_Q2_0) * MMRT_BYTES_PQ2_0;
        }
}

/* Ends the header at the cursor: makes offsets absolute, and checks that the data is there. What
 * has no elements has no data, and may be said to lie anywhere. */
static mmrt_status place_tensors(mmrt_parser *p, mmrt_gguf_tensor **order) {
    mmrt_gguf *gguf = p->gguf;
    uint64_t end = p->cursor.position;
    uint64_t padding = (p->alignment - end % p->alignment) % p->alignment;
    uint64_t room = mmrt_cursor_left(&p->cursor);
    room -= padding < room ? padding : room;
    gguf->header_size = p->cursor.size - room;
    tell_q2_apart(gguf, order, room);

    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        mmrt_gguf_tensor *tensor = &gguf->tensors[i];
        if (is_empty(tensor) && tensor->offset > room)
            tensor->offset = room;
        if (tensor->offset > room || tensor->size > room - tensor->offset) {
            mmrt_parser_begin(p, "tensor", i);
            mmrt_parser_show_name(p, tensor->name, tensor->name_length);
            return mmrt_parser_fail(p, MMRT_FORMAT, offset_field(p, tensor), "offset",
                                    "its %" PRIu64 " bytes from %" PRIu64
                                    " pass the end of the file, which "
                                    "has %" PRIu64 " bytes after its header",
                                    tensor->size, tensor->offset, room);
        }
        tensor->offset += gguf->header_size;
    }
    return MMRT_OK;
}

/* Checks that no data is two tensors', and measures those of unknown types: they reach to the next
 * one, or to the end of the file. */
static mmrt_status check_disjoint(mmrt_parser *p, mmrt_gguf_tensor **order) {
    const mmrt_gguf *gguf = p->gguf;
    const uint64_t n = sort_by_offset(gguf, order);
    for (uint64_t i = 0; i < n; i++)
        if (!mmrt_format_find(order[i]->type))
            order[i]->size = (i + 1 < n ? order[i + 1]->offset : p->cursor.size) - order[i]->offset;
    for (uint64_t i = 1; i < n; i++) {
        const mmrt_gguf_tensor *before = order[i - 1];
        const mmrt_gguf_tensor *after = order[i];
        if (after->offset - before->offset < before->size) {
            mmrt_parser_begin(p, "tensor", (uint64_t)(after - gguf->tensors));
            mmrt_parser_show_name(p, after->name, after->name_length);
            return mmrt_parser_fail(p, MMRT_FORMAT, offset_field(p, after), "offset",
                                    "its data overlaps that of tensor %" PRIu64,
                                    (uint64_t)(before - gguf->tensors));
        }
    }
    return MMRT_OK;
}

static mmrt_status check_names(mmrt_parser *p, mmrt_named *names) {
    const mmrt_gguf *gguf = p->gguf;
    for (uint64_t i = 0; i < gguf->n_tensors; i++)
        names[i] = (mmrt_named){gguf->tensors[i].name, gguf->tensors[i].name_length, i};
    return mmrt_parser_check_unique(p, names, gguf->n_tensors, "tensor", "name");
}

mmrt_status mmrt_parse_tensors(mmrt_parser *p) {
    mmrt_gguf *gguf = p->gguf;
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        mmrt_parser_begin(p, "tensor", i);
        mmrt_status status = read_tensor(p, &gguf->tensors[i]);
        if (status != MMRT_OK)
            return status;
    }

    mmrt_named *names = calloc(gguf->n_tensors + 1, sizeof *names);
    mmrt_gguf_tensor **order = calloc(gguf->n_tensors + 1, sizeof *order);
    mmrt_status status;
    if (!names || !order)
        status = mmrt_fail(p->err, MMRT_NO_MEMORY, "%s: no memory for its tensors", p->path);
    else
        status = check_names(p, names);
    if (status == MMRT_OK)
        status = place_tensors(p, order);
    if (status == MMRT_OK)
        status = check_disjoint(p, order);
    free(order);
    free(names);
    return status;
}
