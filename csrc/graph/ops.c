#include "graph/op.h"

#include "base/status.h"

#include <math.h>
#include <string.h>

static const struct op_info *const infos[] = {
#define MMRT_OP(NAME, name, meaning) &mmrt_op_##name,
#include "graph/ops.def"
};

static const size_t n_infos = sizeof infos / sizeof *infos;

const struct op_info *mmrt_op_info(mmrt_op_kind kind) {
    const size_t index = (size_t)kind;
    return index < n_infos ? infos[index] : NULL;
}

mmrt_status mmrt_op_init(const char *kind, mmrt_op *op, mmrt_error *err) {
    size_t index = 0;
    while (index < n_infos && strcmp(infos[index]->name, kind) != 0)
        index++;
    if (index == n_infos)
        return mmrt_fail(err, MMRT_ARGUMENT, "there is no operation %s", kind);
    *op = (mmrt_op){
        .kind = (mmrt_op_kind)index,
        .weights = {-1, -1, -1},
        .biases = {-1, -1, -1},
        .scales = {1, 1, 1},
        .stack_scales = {-1, -1, -1},
#define MMRT_OP_FIELD(type, name, none, meaning) .name = none,
#include "graph/ops.def"
    };
    return MMRT_OK;
}

static bool is_int32(double value) {
    return value >= INT32_MIN && value <= INT32_MAX && value == floor(value);
}

static bool is_bool(double value) {
    return value == 0 || value == 1;
}

static bool is_float(double value) {
    (void)value;
    return true;
}

#define HOLDS(type) _Generic((type)0, int32_t: is_int32, bool: is_bool, float: is_float)

static mmrt_status refuse(const mmrt_op *op, const char *field, double value, mmrt_error *err) {
    return mmrt_fail(err, MMRT_ARGUMENT, "%s: %s cannot be %g", infos[op->kind]->name, field,
                     value);
}

mmrt_status mmrt_op_set(mmrt_op *op, const char *field, double value, mmrt_error *err) {
#define MMRT_OP_FIELD(type, name, none, meaning)                                                   \
    if (strcmp(field, #name) == 0) {                                                               \
        if (!HOLDS(type)(value))                                                                   \
            return refuse(op, field, value, err);                                                  \
        op->name = (type)value;                                                                    \
        return MMRT_OK;                                                                            \
    }
#include "graph/ops.def"
    return mmrt_fail(err, MMRT_ARGUMENT, "operations have no field %s", field);
}
