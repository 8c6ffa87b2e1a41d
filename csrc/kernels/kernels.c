#include "kernels/kernels.h"

#include "kernels/ref/ref.h"

#include <pthread.h>
#include <string.h>

#define MMRT_MATRIX_KERNEL(ISA, isa, type)                                                         \
    mmrt_matvec_fn mmrt_matvec_##type##_##isa;                                                     \
    mmrt_matmul_fn mmrt_matmul_##type##_##isa;                                                     \
    extern const size_t mmrt_few_##type##_##isa;
#define MMRT_COLUMN_KERNEL(ISA, isa, type) mmrt_by_columns_fn mmrt_by_columns_##type##_##isa;
#define MMRT_VECTOR_KERNEL(ISA, isa, name) mmrt_##name##_fn mmrt_##name##_##isa;
#include "kernels/kernels.def"

#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    _Static_assert((id) < MMRT_TYPE_LIMIT, "tables have no room for " #name);
#include "quant/formats.def"

static struct mmrt_kernels tables[MMRT_ISA_COUNT];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

/* Overrides what `isa` has kernels for. */
static void apply(struct mmrt_kernels *table, mmrt_isa isa) {
    (void)table; /* a build for other machines may have none */
    (void)isa;
#define MMRT_MATRIX_KERNEL(ISA, name, type)                                                        \
    if (isa == MMRT_ISA_##ISA) {                                                                   \
        table->matvec[MMRT_TYPE_##type] = mmrt_matvec_##type##_##name;                             \
        table->matmul[MMRT_TYPE_##type] = mmrt_matmul_##type##_##name;                             \
        table->few[MMRT_TYPE_##type] = mmrt_few_##type##_##name;                                   \
        table->matrix_isa[MMRT_TYPE_##type] = isa;                                                 \
    }
#define MMRT_COLUMN_KERNEL(ISA, name, type)                                                        \
    if (isa == MMRT_ISA_##ISA)                                                                     \
        table->by_columns[MMRT_TYPE_##type] = mmrt_by_columns_##type##_##name;
#define MMRT_VECTOR_KERNEL(ISA, name, op)                                                          \
    if (isa == MMRT_ISA_##ISA)                                                                     \
        table->op = mmrt_##op##_##name;
#include "kernels/kernels.def"
}

static void fill_tables(void) {
    struct mmrt_kernels table;
    memset(&table, 0, sizeof table);
#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    table.matvec[id] = mmrt_matvec_##name##_ref;                                                   \
    table.matmul[id] = mmrt_matmul_##name##_ref;                                                   \
    table.few[id] = MMRT_FEW;
#define MMRT_FORMAT_SIZE_ONLY(id, name, elements, bytes)
#include "quant/formats.def"
    table.quantize = mmrt_quantize_ref;
    table.rms_norm = mmrt_rms_norm_ref;
    table.centre = mmrt_centre_ref;
    table.add = mmrt_add_ref;
    table.activate = mmrt_activate_ref;
    table.glu = mmrt_glu_ref;
    table.largest = mmrt_largest_ref;
    table.exponentials = mmrt_exponentials_ref;
    table.attend = mmrt_attend_ref;
    table.attend_merge = mmrt_attend_merge_ref;
    table.delta = mmrt_delta_ref;
    table.scan = mmrt_scan_ref;
    table.roof = mmrt_roof_ref;
    for (mmrt_isa isa = 0; isa < MMRT_ISA_COUNT; isa++) {
        if (!mmrt_isa_missing(isa))
            apply(&table, isa);
        tables[isa] = table;
    }
}

const struct mmrt_kernels *mmrt_kernels_for(mmrt_isa isa) {
    pthread_once(&tables_once, fill_tables);
    return &tables[isa];
}

/* An odd number of cache lines, so that the columns of a slice lie in different sets of the cache.
 */
static size_t columns_stride(size_t k) {
    return (k + 255) / 256 * 256 + 64;
}

/* The arrays follow one another, each a multiple of 64 bytes long. */
static size_t rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

size_t mmrt_columns_bytes(size_t n, size_t k, size_t few) {
    size_t stride = columns_stride(k);
    return rounded(n * k * sizeof(float)) + n * stride + 2 * rounded(n * stride / 16 * 4) +
           3 * rounded(n * stride / 32 * 4) + few * (2 * stride + 3 * rounded(stride / 32 * 4));
}

void mmrt_columns_place(struct mmrt_columns *columns, size_t n, size_t k, size_t few,
                        void *memory) {
    size_t stride = columns_stride(k);
    char *at = memory;
    *columns = (struct mmrt_columns){.k = k, .stride = stride, .last = n - 1, .few = few};
    columns->x = (float *)(void *)at;
    at += rounded(n * k * sizeof(float));
    columns->q = (int8_t *)at;
    at += n * stride;
    columns->sum16 = (float *)(void *)at;
    at += rounded(n * stride / 16 * 4);
    columns->sum32 = (float *)(void *)at;
    at += rounded(n * stride / 32 * 4);
    columns->d = (float *)(void *)at;
    at += rounded(n * stride / 32 * 4);
    columns->start16 = (int32_t *)(void *)at;
    at += rounded(n * stride / 16 * 4);
    columns->start32 = (int32_t *)(void *)at;
    at += rounded(n * stride / 32 * 4);
    columns->few_d = (float *)(void *)at;
    at += few * rounded(stride / 32 * 4);
    columns->few_sum = (float *)(void *)at;
    at += few * rounded(stride / 32 * 4);
    columns->few_start = (int32_t *)(void *)at;
    at += few * rounded(stride / 32 * 4);
    columns->planes = (int8_t *)at;
    at += few * stride;
    columns->strided = (int8_t *)at;
}

static void copy_row(void *rows, size_t bytes, size_t from, size_t to) {
    memcpy((char *)rows + to * bytes, (const char *)rows + from * bytes, bytes);
}

void mmrt_columns_copy(const struct mmrt_columns *columns, size_t from, size_t to) {
    const size_t stride = columns->stride, of_groups = stride / MMRT_GROUP * sizeof(float);
    copy_row(columns->x, columns->k * sizeof(float), from, to);
    if (!columns->q)
        return;
    copy_row(columns->q, stride, from, to);
    copy_row(columns->d, of_groups, from, to);
    copy_row(columns->sum16, 2 * of_groups, from, to);
    copy_row(columns->sum32, of_groups, from, to);
    copy_row(columns->start16, 2 * of_groups, from, to);
    copy_row(columns->start32, of_groups, from, to);
    from = columns->last - from, to = columns->last - to;
    copy_row(columns->planes, stride, from, to);
    copy_row(columns->few_d, of_groups, from, to);
    copy_row(columns->few_sum, of_groups, from, to);
    copy_row(columns->few_start, of_groups, from, to);
    copy_row(columns->strided, stride, from, to);
}

/* Keys, values and sums of a tile, its scores, for some rows once more, and three numbers a row. */
size_t mmrt_attend_scratch(size_t head_dim, size_t value_dim) {
    return (MMRT_ATTEND_KEYS * (head_dim + value_dim) + MMRT_ATTEND_ROWS * value_dim +
            (MMRT_ATTEND_ROWS + 8) * MMRT_ATTEND_KEYS + 3 * MMRT_ATTEND_ROWS) *
           sizeof(float);
}
