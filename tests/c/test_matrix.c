/* Every matrix kernel of kernels.def against `ref`, on random blocks.
 *
 * Weights, activations and scratch end at a page that may not be touched, or begin behind one. All
 * rows times all columns are compared with ref; each other call, of fewer rows or columns, must
 * give the same bits as that one. */
#define _GNU_SOURCE
#include "kernels/kernels.h"
#include "quant/f16.h"
#include "cases.h"

#define MMRT_MATRIX_KERNEL(ISA, isa, type)                                                         \
    mmrt_matvec_fn mmrt_matvec_##type##_##isa;                                                     \
    mmrt_matmul_fn mmrt_matmul_##type##_##isa;
#define MMRT_VECTOR_KERNEL(ISA, isa, name)
#include "kernels/kernels.def"

static struct kernel {
    const char *name;
    mmrt_isa isa;
    uint32_t type;
    mmrt_matvec_fn *matvec;
    mmrt_matmul_fn *matmul;
    size_t cases;
} kernels[] = {
#define MMRT_MATRIX_KERNEL(ISA, isa, type)                                                         \
    {#type " " #isa,                                                                               \
     MMRT_ISA_##ISA,                                                                               \
     MMRT_TYPE_##type,                                                                             \
     mmrt_matvec_##type##_##isa,                                                                   \
     mmrt_matmul_##type##_##isa,                                                                   \
     0},
#define MMRT_VECTOR_KERNEL(ISA, isa, name)
#include "kernels/kernels.def"
    {NULL, 0, 0, NULL, NULL, 0},
};

/* Where a block's binary16 numbers are; -1: none. */
static const struct scales {
    uint32_t type;
    int d, m;
} scales_of[] = {
    {MMRT_TYPE_F32, -1, -1},    {MMRT_TYPE_F16, 0, -1},    {MMRT_TYPE_BF16, -1, -1},
    {MMRT_TYPE_Q4_0, 0, -1},    {MMRT_TYPE_Q4_1, 0, 2},    {MMRT_TYPE_Q5_0, 0, -1},
    {MMRT_TYPE_Q5_1, 0, 2},     {MMRT_TYPE_Q8_0, 0, -1},   {MMRT_TYPE_Q4_K, 0, 2},
    {MMRT_TYPE_Q5_K, 0, 2},     {MMRT_TYPE_Q6_K, 208, -1}, {MMRT_TYPE_Q2_K, 80, 82},
    {MMRT_TYPE_Q3_K, 108, -1},  {MMRT_TYPE_IQ4_NL, 0, -1}, {MMRT_TYPE_IQ4_XS, 0, -1},
    {MMRT_TYPE_IQ2_XXS, 0, -1}, {MMRT_TYPE_IQ2_XS, 0, -1}, {MMRT_TYPE_IQ2_S, 0, -1},
    {MMRT_TYPE_IQ3_XXS, 0, -1}, {MMRT_TYPE_IQ3_S, 0, -1},  {MMRT_TYPE_IQ1_S, 0, -1},
    {MMRT_TYPE_IQ1_M, -1, -1},  {MMRT_TYPE_MXFP4, -1, -1}, {MMRT_TYPE_TQ2_0, 64, -1},
    {MMRT_TYPE_TQ1_0, 52, -1},  {MMRT_TYPE_NVFP4, -1, -1}, {MMRT_TYPE_Q1_0, 0, -1},
    {MMRT_TYPE_Q2_0, 0, -1},    {MMRT_TYPE_PQ2_0, 0, -1},
};

enum { ROWS = 33, COLUMNS = 25, MAX_K = 2592 };

/* The numbers of one matrix, ref's products and how far from them a kernel may be. */
static struct matrix {
    const struct mmrt_format *format;
    struct scales scales;
    size_t k, row_bytes;
    uint8_t *w; /* the first row */
    struct mmrt_columns columns;
    float expected[COLUMNS * ROWS];
    double bound[COLUMNS * ROWS];
    double terms[COLUMNS * ROWS]; /* the sum of |w x|, at least */
    float found[COLUMNS * ROWS];  /* by the kernel, all at once */
} m;

static struct guarded weights_room, columns_room, scratch_room;

static void put_half(uint8_t *at, uint16_t bits) {
    memcpy(at, &bits, 2);
}

/* Random blocks, or for fill >= 0 blocks of nothing but that byte: quanta at their limits. These
 * have no minima, with which they might all cancel. */
static void fill_row(uint8_t *row, int fill) {
    const size_t n_blocks = m.k / m.format->elements, bytes = m.format->bytes;
    for (size_t i = 0; i < n_blocks * bytes; i++)
        row[i] = (uint8_t)(fill < 0 ? next_random() : (unsigned)fill);
    for (size_t b = 0; b < n_blocks; b++, row += bytes) {
        const float sign = random_below(4) ? 1 : -1; /* files hold negative scales too */
        if (m.format->id == MMRT_TYPE_F32 || m.format->id == MMRT_TYPE_BF16) {
            float value = random_unit();
            memcpy(row, (char *)&value + 4 - bytes, bytes); /* a bfloat16 is the upper half */
        } else if (m.format->id == MMRT_TYPE_F16) {
            put_half(row, mmrt_f32_to_f16(random_unit()));
        } else if (m.format->id == MMRT_TYPE_IQ1_M) {
            const unsigned d = mmrt_f32_to_f16(sign * (0.01f + 0.01f * random_unit()));
            for (int i = 0; i < 4; i++) /* in the upper nibbles of four words */
                row[49 + 2 * i] = (uint8_t)((row[49 + 2 * i] & 15) | (d >> (4 * i) & 15) << 4);
        } else if (m.format->id == MMRT_TYPE_MXFP4) {
            row[0] = (uint8_t)(118 + random_below(6)); /* a power of 2 near 0.01 */
        } else if (m.scales.d >= 0) {
            put_half(row + m.scales.d, mmrt_f32_to_f16(sign * (0.01f + 0.01f * random_unit())));
            if (m.scales.m >= 0)
                put_half(row + m.scales.m, mmrt_f32_to_f16(fill < 0 ? 0.05f * random_unit() : 0));
        }
    }
}

/* Whether a weight may be zero, by its bias, where its scale is not. */
static bool has_zeros(uint32_t type) {
    return type == MMRT_TYPE_TQ1_0 || type == MMRT_TYPE_TQ2_0 || type == MMRT_TYPE_Q2_0 ||
           type == MMRT_TYPE_PQ2_0;
}

/* How far from ref a sum may be: of the terms that it adds up, as many roundings as there are one
 * after another: about k / 8 in a vector lane (a product and its minimum for 16 elements at least),
 * two for each element of a tail of floats, five to add the lanes up. Each is off by ROUNDING times
 * the sum so far at most; signs being random, errors grow as the square root of their number.
 *
 * The terms are what a kernel adds before d * q and the minimum or bias cancel: each is below 3
 * times the largest |weight| of its 16, since random q nearly span their range. */
static void set_bound(size_t row, size_t column) {
    const size_t k = m.k, sub = m.format->elements > 1 ? 16 : 1;
    const float *x = m.columns.x + column * k;
    static float w[MAX_K];
    double terms = 0;
    m.format->unpack(m.w + row * m.row_bytes, w, k);
    for (size_t i = 0; i < k; i += sub) {
        double largest = 0, sum = 0;
        if (has_zeros(m.format->id)) {
            uint16_t d; /* weights that are all zero are added up as ones */
            const size_t block = i / m.format->elements;
            memcpy(&d, m.w + row * m.row_bytes + block * m.format->bytes + m.scales.d, sizeof d);
            largest = fabs((double)mmrt_f16_to_f32(d));
        }
        for (size_t j = i; j < i + sub; j++) {
            largest = fmax(largest, fabs((double)w[j]));
            sum += fabs((double)x[j]);
        }
        terms += largest * sum * (sub > 1 ? 3 : 1);
    }
    m.terms[column * ROWS + row] = terms;
    m.bound[column * ROWS + row] = ROUNDING * sqrt((double)k / 8 + 2 * 15 + 5) * terms;
}

/* A case of ROWS rows and COLUMNS columns; `place`: weights end at the guard page, begin at one, or
 * end a byte before it, so that they are aligned to nothing. fill: see fill_row. */
static void make_case(const struct mmrt_format *format, size_t k, int place, int fill) {
    const struct mmrt_kernels *ref = mmrt_kernels_for(MMRT_ISA_REF);
    const size_t row = k / format->elements * format->bytes;
    m.format = format;
    m.k = k;
    m.row_bytes = row + (k % 3 ? 0 : 2 * format->bytes + 5); /* rows may lie apart */
    const size_t bytes = (ROWS - 1) * m.row_bytes + row;
    m.w = place == 1 ? weights_room.begin : weights_room.end - bytes - (place == 2);
    memset(m.w, 0xff, bytes); /* NaN between the rows */
    for (size_t r = 0; r < ROWS; r++)
        fill_row(m.w + r * m.row_bytes, fill);

    const size_t columns_bytes = mmrt_columns_bytes(COLUMNS, k, MMRT_FEW);
    memset(columns_room.begin, 0xff, (size_t)(columns_room.end - columns_room.begin));
    uint8_t *memory = columns_room.end - columns_bytes;
    CHECK(columns_bytes % 64 == 0);
    memset(memory, 0, columns_bytes);
    mmrt_columns_place(&m.columns, COLUMNS, k, MMRT_FEW, memory);
    for (size_t c = 0; c < COLUMNS; c++) {
        const float size = ldexpf(1, (int)random_below(16) - 8);
        for (size_t i = 0; i < k; i++)
            m.columns.x[c * k + i] = fill < 0 ? size * random_unit() : c % 2 ? size : -size;
        if (format->elements > 1)
            ref->quantize(&m.columns, c, 0, k);
        for (size_t r = 0; r < ROWS; r++)
            set_bound(r, c);
    }
    ref->matmul[format->id](m.w, m.row_bytes, ROWS, &m.columns, 0, COLUMNS, m.expected, ROWS, NULL);
}

static void *scratch(void) {
    const size_t bytes = MMRT_MATMUL_SCRATCH;
    CHECK(bytes % 64 == 0);
    void *at = scratch_room.end - bytes;
    memset(at, 0xff, bytes); /* NaN: nothing of it may be used before it is written */
    return at;
}

static void failed(const struct kernel *kernel, const char *op, size_t row, size_t column,
                   double expected, double found) {
    case_failed("%s %s: k %zu, row bytes %zu, row %zu, column %zu: expected %.9g, found %.9g", op,
                kernel->name, m.k, m.row_bytes, row, column, expected, found);
}

/* many: of many columns, whose elements a kernel may round to bfloat16. */
static void check_near(const struct kernel *kernel, const char *op, bool many, size_t row,
                       size_t column, float found) {
    const size_t at = column * ROWS + row;
    const double rounding = many && kernel->isa == MMRT_ISA_AVX512BF16 ? 0x1p-8 : 0;
    if (!(fabs((double)found - m.expected[at]) <= m.bound[at] + rounding * m.terms[at]))
        failed(kernel, op, row, column, m.expected[at], found);
}

/* Calls matmul on [row, row + rows) x [column, column + columns) and checks that it writes these
 * and no others, with the bits of `same` (NULL: just writes them to found). */
static void matmul_part(struct kernel *kernel, size_t row, size_t rows, size_t column,
                        size_t columns, size_t y_stride, const float *same, float *found) {
    static float y[COLUMNS * (ROWS + 16) + 32];
    const float canary = -12345;
    for (size_t i = 0; i < sizeof y / sizeof *y; i++)
        y[i] = canary;
    kernel->matmul(m.w + row * m.row_bytes, m.row_bytes, rows, &m.columns, column, columns, y + 16,
                   y_stride, scratch());
    kernel->cases++;
    for (size_t i = 0; i < sizeof y / sizeof *y; i++) {
        const size_t c = (i - 16) / y_stride, r = (i - 16) % y_stride;
        if (i < 16 || r >= rows || c >= columns) {
            if (y[i] != canary)
                failed(kernel, "matmul past its output,", row + r, column + c, canary, y[i]);
        } else if (same) {
            const float expected = same[(column + c) * ROWS + row + r];
            if (memcmp(&y[i], &expected, sizeof expected) != 0)
                failed(kernel, "matmul of a part,", row + r, column + c, expected, y[i]);
        } else {
            found[(column + c) * ROWS + row + r] = y[i];
        }
    }
}

/* Lays n columns up to `last` out as the kernel's instruction set has them. */
static void make_last(const struct kernel *kernel, size_t last, size_t n) {
    struct mmrt_columns *c = &m.columns;
    memset(c->planes, 0, MMRT_FEW * c->stride);
    memset(c->strided, 0, MMRT_FEW * c->stride);
    memset(c->few_d, 0, MMRT_FEW * c->stride / 32 * sizeof *c->few_d);
    memset(c->few_sum, 0, MMRT_FEW * c->stride / 32 * sizeof *c->few_sum);
    memset(c->few_start, 0, MMRT_FEW * c->stride / 32 * sizeof *c->few_start);
    c->last = last;
    for (size_t column = last + 1 - n; m.format->elements > 1 && column <= last; column++)
        mmrt_kernels_for(kernel->isa)->quantize(c, column, 0, m.k);
}

/* Calls matvec on [row, row + rows) x the n columns up to `last` and checks that it writes these
 * and no others. */
static void matvec_part(struct kernel *kernel, size_t row, size_t rows, size_t last, size_t n,
                        float found[MMRT_FEW][ROWS]) {
    enum { STRIDE = ROWS + 2 };
    float y[MMRT_FEW * STRIDE + 2];
    const float canary = -12345;
    for (size_t i = 0; i < sizeof y / sizeof *y; i++)
        y[i] = canary;
    kernel->matvec(m.w + row * m.row_bytes, m.row_bytes, rows, m.w, &m.columns, n, y + 1, STRIDE);
    kernel->cases++;
    for (size_t i = 0; i < sizeof y / sizeof *y; i++) {
        const size_t c = (i - 1) / STRIDE, r = (i - 1) % STRIDE;
        if (i >= 1 && r < rows && c < n)
            found[c][r] = y[i];
        else if (y[i] != canary)
            failed(kernel, "matvec past its output,", row + r, last, canary, y[i]);
    }
}

/* Of quantised types each of n columns must have the same bits as alone. */
static void check_matvec(struct kernel *kernel, size_t last, size_t n) {
    static const size_t row_counts[] = {1, 2, 15, 16, 17};
    float found[MMRT_FEW][ROWS], part[MMRT_FEW][ROWS];
    make_last(kernel, last, n);
    matvec_part(kernel, 0, ROWS, last, n, found);
    for (size_t c = 0; c < n; c++)
        for (size_t r = 0; r < ROWS; r++)
            check_near(kernel, "matvec", false, r, last + 1 - n + c, found[c][r]);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++) {
        const size_t rows = row_counts[i], row = random_below(ROWS - rows + 1);
        matvec_part(kernel, row, rows, last, n, part);
        for (size_t c = 0; c < n; c++)
            if (memcmp(part[c], found[c] + row, rows * sizeof(float)) != 0)
                failed(kernel, "matvec of fewer rows,", row, last, found[c][row], part[c][0]);
    }
    for (size_t c = 0; m.format->elements > 1 && c < n; c++) {
        make_last(kernel, last + 1 - n + c, 1);
        matvec_part(kernel, 0, ROWS, last + 1 - n + c, 1, part);
        if (memcmp(part[0], found[c], sizeof part[0]) != 0)
            failed(kernel, "matvec of one column,", 0, last + 1 - n + c, part[0][0], found[c][0]);
    }
}

static void check_matmul(struct kernel *kernel) {
    static const size_t row_counts[] = {1, 2, 15, 16, 17, ROWS};
    matmul_part(kernel, 0, ROWS, 0, COLUMNS, ROWS, NULL, m.found);
    for (size_t c = 0; c < COLUMNS; c++)
        for (size_t r = 0; r < ROWS; r++)
            check_near(kernel, "matmul", true, r, c, m.found[c * ROWS + r]);
    for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++)
        for (size_t columns = 1; columns <= 14; columns++) {
            const size_t rows = row_counts[i];
            matmul_part(kernel, random_below(ROWS - rows + 1), rows,
                        random_below(COLUMNS - columns + 1), columns, rows + random_below(16),
                        m.found, NULL);
        }
}

/* That only `row` (or, for row == ROWS, only `column`) is not finite, all else as it was. */
static void check_fault(struct kernel *kernel, size_t row, size_t column) {
    static float found[COLUMNS * ROWS];
    matmul_part(kernel, 0, ROWS, 0, COLUMNS, ROWS, NULL, found);
    for (size_t c = 0; c < COLUMNS; c++) {
        float y[MMRT_FEW][ROWS];
        make_last(kernel, c, 1);
        matvec_part(kernel, 0, ROWS, c, 1, y);
        for (size_t r = 0; r < ROWS; r++) {
            const size_t at = c * ROWS + r;
            if (r == row || c == column) {
                if (isfinite(found[at]))
                    failed(kernel, "matmul with a fault,", r, c, NAN, found[at]);
                if (isfinite(y[0][r]))
                    failed(kernel, "matvec with a fault,", r, c, NAN, y[0][r]);
            } else {
                if (memcmp(&found[at], &m.found[at], sizeof *found) != 0)
                    failed(kernel, "matmul beside a fault,", r, c, m.found[at], found[at]);
                check_near(kernel, "matvec beside a fault,", false, r, c, y[0][r]);
            }
        }
    }
}

/* NaN and infinity as a weight or its scales and minima, and as an activation. */
static void check_faults(struct kernel *kernel) {
    const size_t size = m.format->bytes, n_blocks = m.k / m.format->elements;
    for (int i = 0; i < 4; i++) {
        const float value = i % 2 ? INFINITY : NAN;
        const int place = i / 2 ? m.scales.m : m.scales.d;
        const size_t row = random_below(ROWS), column = random_below(COLUMNS);
        uint8_t *block = m.w + row * m.row_bytes + random_below(n_blocks) * size, saved[256];
        memcpy(saved, block, size);
        if (place >= 0)
            put_half(block + place, mmrt_f32_to_f16(value));
        else if (m.format->elements == 1)
            memcpy(block, (const char *)&value + 4 - size, size);
        if (memcmp(saved, block, size) != 0)
            check_fault(kernel, row, COLUMNS);
        memcpy(block, saved, size);

        const size_t at = column * m.k + random_below(m.k);
        const float x = m.columns.x[at];
        m.columns.x[at] = value;
        if (m.format->elements > 1)
            mmrt_kernels_for(MMRT_ISA_REF)->quantize(&m.columns, column, 0, m.k);
        check_fault(kernel, ROWS, column);
        m.columns.x[at] = x;
        if (m.format->elements > 1)
            mmrt_kernels_for(MMRT_ISA_REF)->quantize(&m.columns, column, 0, m.k);
    }
}

static void test_shape(uint32_t type, size_t k, int place, int fill) {
    if (!case_taken())
        return;
    make_case(mmrt_format_find(type), k, place, fill);
    for (struct kernel *kernel = kernels; kernel->name; kernel++) {
        if (kernel->type != type || mmrt_isa_missing(kernel->isa))
            continue;
        for (size_t c = 0; c < COLUMNS; c += 1 + random_below(8))
            check_matvec(kernel, c, 1 + random_below(c < MMRT_FEW ? c + 1 : MMRT_FEW));
        check_matmul(kernel);
        if (k <= 768)
            check_faults(kernel);
    }
}

static void test_type(struct scales scales) {
    static const size_t floats[] = {1, 7, 8, 15, 16, 17, 33, 100, 256, 576};
    static const size_t by_32[] = {32, 64, 96, 128, 160, 224, 256, 288, 576, 640, 1536, 2592};
    static const size_t by_64[] = {64, 128, 192, 256, 320, 448, 576, 640, 1536, 2560};
    static const size_t by_256[] = {256, 512, 768, 1536, 2560};
    const uint32_t elements = mmrt_format_find(scales.type)->elements;
    const size_t *ks = elements == 1    ? floats
                       : elements == 32 ? by_32
                       : elements == 64 ? by_64
                                        : by_256;
    const size_t n = elements == 1    ? sizeof floats / sizeof *floats
                     : elements == 32 ? sizeof by_32 / sizeof *by_32
                     : elements == 64 ? sizeof by_64 / sizeof *by_64
                                      : sizeof by_256 / sizeof *by_256;
    m.scales = scales;
    for (size_t i = 0; i < n; i++)
        for (int place = ks[i] <= 640 ? 0 : 2; place < 3; place++)
            test_shape(scales.type, ks[i], place, -1);
    static const uint8_t fills[] = {0x00, 0x7f, 0x80, 0xff};
    for (size_t i = 0; i < sizeof fills; i++)
        test_shape(scales.type, 256, 0, fills[i]);
}

int main(int argc, char **argv) {
    take_cases(argc, argv);
    weights_room = guarded_pages(ROWS * (MAX_K * 4 + 256));
    columns_room = guarded_pages(mmrt_columns_bytes(COLUMNS, MAX_K, MMRT_FEW));
    scratch_room = guarded_pages(MMRT_MATMUL_SCRATCH);
    for (size_t i = 0; i < sizeof scales_of / sizeof *scales_of; i++)
        test_type(scales_of[i]);
    for (struct kernel *kernel = kernels; kernel->name; kernel++) {
        const char *missing = mmrt_isa_missing(kernel->isa);
        printf("%-18s %6zu cases%s%s\n", kernel->name, kernel->cases, missing ? ": " : "",
               missing ? missing : "");
        if (missing)
            continue;
        const struct mmrt_kernels *table = mmrt_kernels_for(kernel->isa);
        CHECK(kernel->cases > 0); /* else its type is missing from scales_of */
        CHECK(table->matvec[kernel->type] == kernel->matvec);
        CHECK(table->matmul[kernel->type] == kernel->matmul);
        CHECK(table->matrix_isa[kernel->type] == kernel->isa);
        CHECK(table->few[kernel->type] >= 1 && table->few[kernel->type] <= MMRT_FEW);
    }
    guarded_free(weights_room);
    guarded_free(columns_room);
    guarded_free(scratch_room);
    return check_result();
}
