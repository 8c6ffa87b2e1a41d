#include "graph/op.h"

static const struct op_info *const infos[] = {
#define MMRT_OP(NAME, name, meaning) &mmrt_op_##name,
#include "graph/ops.def"
#undef MMRT_OP
};

const struct op_info *mmrt_op_info(mmrt_op_kind kind) {
    const size_t n = sizeof infos / sizeof *infos, index = (size_t)kind;
    return index < n ? infos[index] : NULL;
}
