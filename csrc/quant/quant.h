/* Tensor types of GGUF: their ids and block sizes, for most a scalar unpack to float32,
 * and for those that can be written a pack from it.
 *
 * The unpacks are the truth that every faster kernel is tested against, so their arithmetic is
 * fixed: each product and each difference rounds to float32 on its own. Compile these files with
 * -ffp-contract=off and without -ffast-math, or a fused multiply-add changes the last bit.
 *
 * Any bytes are valid input: an unpack reads all of a block and never fails. Where the scales are
 * NaN the result is NaN, of which sign and payload is the compiler's choice.
 */
#ifndef MMRT_QUANT_H
#define MMRT_QUANT_H

#include <stddef.h>
#include <stdint.h>

/* MMRT_TYPE_Q4_0 and so on; the values are the ids in GGUF files. */
enum mmrt_type {
#define MMRT_FORMAT(id, name, elements, bytes) MMRT_TYPE_##name = (id),
#include "formats.def"
};

/* MMRT_ELEMENTS_Q4_0, MMRT_BYTES_Q4_0 and so on: the block sizes as constants. */
enum mmrt_block_size {
#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    MMRT_ELEMENTS_##name = (elements), MMRT_BYTES_##name = (bytes),
#include "formats.def"
};

/* Elements that share one scale where activations, keys and values are quantised. */
enum { MMRT_GROUP = 32 };

/* Writes n_elements floats from consecutive blocks of one type. n_elements is a multiple of the
 * type's elements per block (a remainder is left unwritten). blocks needs no alignment; out is
 * aligned for float and does not overlap it. */
typedef void mmrt_unpack_fn(const void *blocks, float *out, size_t n_elements);

/* Writes n_elements floats as blocks of one type, as near as its values come in the sense of least
 * squares. n_elements is a multiple of the type's elements per block; the floats are at most 65504
 * in size. blocks needs no alignment. The same bits on every machine. */
typedef void mmrt_pack_fn(const float *values, void *blocks, size_t n_elements);

struct mmrt_format {
    const char *name;       /* as GGUF spells it: "Q4_K" */
    uint32_t id;            /* an enum mmrt_type */
    uint32_t elements;      /* per block, never 0 */
    uint32_t bytes;         /* per block, never 0 */
    mmrt_unpack_fn *unpack; /* NULL: only the sizes of this type are known */
    mmrt_pack_fn *pack;     /* NULL: this type is not written here */
};

/* The format with this id, or NULL when there is none. Takes any value, as read from a file;
 * the result is static. */
const struct mmrt_format *mmrt_format_find(uint32_t id);

/* mmrt_unpack_Q4_0 and so on, for the types that have one. */
#define MMRT_FORMAT(id, name, elements, bytes) mmrt_unpack_fn mmrt_unpack_##name;
#define MMRT_FORMAT_SIZE_ONLY(id, name, elements, bytes)
#include "formats.def"

/* mmrt_pack_Q4_0 and so on, likewise. */
#define MMRT_FORMAT(id, name, elements, bytes)
#define MMRT_FORMAT_PACK(id, name, elements, bytes) mmrt_pack_fn mmrt_pack_##name;
#include "formats.def"

#endif
