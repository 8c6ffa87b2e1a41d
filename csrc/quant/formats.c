/* The table of formats.def, indexed by id. */
#include "quant.h"

static const struct mmrt_format formats[] = {
#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    [id] = {#name, id, elements, bytes, mmrt_unpack_##name, NULL},
#define MMRT_FORMAT_PACK(id, name, elements, bytes)                                                \
    [id] = {#name, id, elements, bytes, mmrt_unpack_##name, mmrt_pack_##name},
#define MMRT_FORMAT_SIZE_ONLY(id, name, elements, bytes)                                           \
    [id] = {#name, id, elements, bytes, NULL, NULL},
#include "formats.def"
};

const struct mmrt_format *mmrt_format_find(uint32_t id) {
    if (id >= sizeof formats / sizeof *formats || formats[id].name == NULL)
        return NULL;
    return &formats[id];
}
