#include "mmrt.h"

#include "base/status.h"
#include "quant/quant.h"

mmrt_status mmrt_dequantize(uint32_t type, const void *blocks, float *out, size_t n_elements,
                            mmrt_error *err) {
    const struct mmrt_format *format = mmrt_format_find(type);
    if (!format)
        return mmrt_fail(err, MMRT_ARGUMENT, "tensor type %u: there is none of this number", type);
    if (!format->unpack)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "tensor type %s: not supported yet", format->name);
    if (n_elements % format->elements)
        return mmrt_fail(err, MMRT_ARGUMENT, "%zu elements are not whole blocks of %u (type %s)",
                         n_elements, format->elements, format->name);
    format->unpack(blocks, out, n_elements);
    return MMRT_OK;
}
