/* Every kernel of kernels.def that is no matrix product, against `ref`: those on plain vectors
 * here, attention in test_attend.h, states in test_states.h. What they read ends at a page that may
 * not be touched. */
#define _GNU_SOURCE
#include "kernels/ref/ref.h"
#include "quant/f16.h"
#include "cases.h"

#include <float.h>

#define MMRT_MATRIX_KERNEL(ISA, isa, type)
#define MMRT_VECTOR_KERNEL(ISA, isa, name) mmrt_##name##_fn mmrt_##name##_##isa;
#include "kernels/kernels.def"

struct kernel {
    const char *name;
    mmrt_isa isa;
    void (*test)(struct kernel *kernel);
    struct mmrt_kernels with; /* the one function that is tested */
    size_t cases;
};

static const struct mmrt_kernels *ref;

static const size_t lengths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 576, 1536, 5120};
enum { LENGTHS = sizeof lengths / sizeof *lengths, MAX_LENGTH = 5120 };

/* Both not finite, or at most `bound` apart. */
static void check_near(const struct kernel *kernel, const char *which, size_t n, size_t i,
                       double expected, double found, double bound) {
    if (isfinite(expected) || isfinite(found))
        if (!(fabs(found - expected) <= bound))
            case_failed("%s%s: length %zu, element %zu: expected %.9g, found %.9g", kernel->name,
                        which, n, i, expected, found);
}

/* n floats that end where their pages do. */
static float *floats_in(struct guarded room, size_t n) {
    return (float *)(void *)room.end - n;
}

/* ---- quantize ------------------------------------------------------------------------------ */

/* One group of 32 of each kind that has its own way through the kernel. */
static void fill_group(int kind, float x[MMRT_GROUP]) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX};
    const float edge = 127 / FLT_MAX; /* the largest |x| whose inverse scale just overflows */
    float size = ldexpf(1, (int)random_below(60) - 30);
    if (kind == 1) /* subnormal numbers */
        size = 0x1p-130f;
    if (kind == 2)
        size = FLT_MAX;
    for (int i = 0; i < MMRT_GROUP; i++)
        x[i] = size * random_unit();
    if (kind == 3 || kind == 4) /* all zero */
        for (int i = 0; i < MMRT_GROUP; i++)
            x[i] = kind == 3 ? 0 : -0.0f;
    if (kind == 5) /* d = 1: ties, which go to the even neighbour */
        for (int i = 0; i < MMRT_GROUP; i++)
            x[i] = i == 7 ? 127 : (float)random_below(253) - 126.5f;
    if (kind >= 6 && kind < 11)
        x[random_below(MMRT_GROUP)] = odd[kind - 6];
    if (kind >= 11 && kind < 31) { /* about the smallest group that is not taken for zeros */
        for (int i = 0; i < MMRT_GROUP; i++)
            x[i] *= edge / size;
        float largest = edge * (1 + 4 * (float)(kind - 21) * FLT_EPSILON);
        x[random_below(MMRT_GROUP)] = kind % 2 ? largest : -largest;
    }
}
enum { GROUP_KINDS = 40 }; /* from 31 on: random of some size */

static void test_quantize(struct kernel *kernel) {
    enum { N = 3, K = GROUP_KINDS * MMRT_GROUP };
    const size_t bytes = mmrt_columns_bytes(N, K, N);
    const struct guarded room[2] = {guarded_pages(bytes), guarded_pages(bytes)};
    struct mmrt_columns columns[2];
    for (int round = 0; round < 50; round++) {
        const size_t column = random_below(N), groups = random_below(GROUP_KINDS + 1);
        const size_t first = random_below(GROUP_KINDS + 1 - groups) * MMRT_GROUP;
        for (int i = 0; i < 2; i++) {
            memset(room[i].end - bytes, 0x55, bytes); /* what is not asked for keeps these */
            mmrt_columns_place(&columns[i], N, K, N, room[i].end - bytes);
            columns[i].last = round % 2 ? column : column - 1; /* one of the last, or none */
        }
        for (int kind = 0; kind < GROUP_KINDS; kind++)
            fill_group(kind, columns[0].x + column * K + kind * MMRT_GROUP);
        memcpy(columns[1].x, columns[0].x, N * K * sizeof(float));
        ref->quantize(&columns[0], column, first, groups * MMRT_GROUP);
        kernel->with.quantize(&columns[1], column, first, groups * MMRT_GROUP);
        kernel->cases++;

        const uint8_t *expected = room[0].end - bytes, *found = room[1].end - bytes;
        const uint8_t *floats[] = {(uint8_t *)columns[0].sum16, (uint8_t *)columns[0].start16};
        /* The layout of the last columns is the kernel's own: test_matrix multiplies with it. */
        const size_t end = round % 2 ? (size_t)((uint8_t *)columns[0].few_d - expected) : bytes;
        for (size_t i = 0; i < end; i += 4) {
            float e, f;
            memcpy(&e, expected + i, 4);
            memcpy(&f, found + i, 4);
            const bool both_nan = isnan(e) && isnan(f) && expected + i >= floats[0] &&
                                  expected + i < floats[1]; /* its bits are the compiler's choice */
            if (memcmp(&e, &f, 4) != 0 && !both_nan)
                case_failed("%s: column %zu, elements %zu to %zu: byte %zu of the columns (q from "
                            "%zu, sums from %zu): expected %08x, found %08x",
                            kernel->name, column, first, first + groups * MMRT_GROUP, i,
                            (size_t)((uint8_t *)columns[0].q - expected),
                            (size_t)(floats[0] - expected), mmrt_f32_bits(e), mmrt_f32_bits(f));
        }
    }
    guarded_free(room[0]);
    guarded_free(room[1]);
}

/* ---- norms, sums, activations --------------------------------------------------------------- */

/* The sum of squares has n / 8 additions one after another and 5 across lanes, the square root
 * halves what they are off (which grows as the square root of their number); four more roundings
 * make an element. */
static void test_rms_norm(struct kernel *kernel) {
    struct guarded room[3];
    for (int i = 0; i < 3; i++)
        room[i] = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++)
        for (int kind = 0; kind < 8; kind++) { /* 0: zeros; 1: with NaN; 2: out is x */
            const size_t n = lengths[l];
            const float eps = kind % 2 ? 1e-5f : 1e-6f, size = ldexpf(1, 4 * kind - 16);
            float *x = floats_in(room[0], n), *w = floats_in(room[1], n);
            float *out = kind == 2 ? x : floats_in(room[2], n);
            static float expected[MAX_LENGTH];
            for (size_t i = 0; i < n; i++) {
                x[i] = kind ? size * random_unit() : 0;
                w[i] = random_unit();
            }
            if (kind == 1)
                x[random_below(n)] = NAN;
            ref->rms_norm(x, w, eps, expected, n);
            kernel->with.rms_norm(x, w, eps, out, n);
            kernel->cases++;
            const double roundings = 4 + sqrt((double)n / 8 + 5) / 2;
            for (size_t i = 0; i < n; i++)
                check_near(kernel, "", n, i, expected[i], out[i],
                           ROUNDING * roundings * fabs((double)expected[i]));
        }
    for (int i = 0; i < 3; i++)
        guarded_free(room[i]);
}

/* The mean and the difference have a rounding each, but for ref's sum, which is in double. */
static void test_centre(struct kernel *kernel) {
    const struct guarded x_room = guarded_pages(MAX_LENGTH * sizeof(float));
    const struct guarded out_room = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++)
        for (int kind = 0; kind < 3; kind++) { /* 1: far from zero; 2: with NaN */
            const size_t n = lengths[l];
            float *x = floats_in(x_room, n), *out = floats_in(out_room, n);
            double sum = 0;
            for (size_t i = 0; i < n; i++)
                x[i] = random_unit() + (kind == 1 ? 1000 : 0);
            if (kind == 2)
                x[random_below(n)] = NAN;
            for (size_t i = 0; i < n; i++)
                sum += (double)x[i];
            kernel->with.centre(x, out, n);
            kernel->cases++;
            for (size_t i = 0; i < n; i++) {
                const double expected = x[i] - sum / (double)n;
                check_near(kernel, "", n, i, (float)expected, out[i],
                           2 * ROUNDING * (fabs((double)x[i]) + fabs(expected)));
            }
        }
    guarded_free(x_room);
    guarded_free(out_room);
}

static void test_add(struct kernel *kernel) {
    const struct guarded y_room = guarded_pages(MAX_LENGTH * sizeof(float));
    const struct guarded x_room = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *y = floats_in(y_room, n), *x = floats_in(x_room, n);
        static float expected[MAX_LENGTH];
        for (size_t i = 0; i < n; i++) {
            x[i] = random_unit();
            expected[i] = y[i] = random_unit();
        }
        ref->add(expected, x, n);
        kernel->with.add(y, x, n);
        kernel->cases++;
        for (size_t i = 0; i < n; i++)
            check_near(kernel, "", n, i, expected[i], y[i], 0);
    }
    guarded_free(y_room);
    guarded_free(x_room);
}

static const char *const activation_names[] = {
    " SiLU", " GELU", " squared ReLU", " clamped SiLU", " ReLU",
};

static float any_argument(void) {
    static const float odd[] = {0,    -0.0f, 1e-40f, -1e-40f, 1e-6f,    -1e-6f,    87,  -87,  88.5f,
                                -89,  1000,  -1000,  1e10f,   -1e10f,   3e38f,     NAN, -NAN, 0.5f,
                                -0.5, 9,     -9,     20,      INFINITY, -INFINITY, 1e5, -1e5, 1};
    enum { ODD = sizeof odd / sizeof *odd };
    const size_t kind = random_below(2 * ODD);
    return kind < ODD ? odd[kind] : (kind % 2 ? 100.0f : 5.0f) * random_unit();
}

/* e^-z, the sum, the quotient, the product and what it multiplies have 7 roundings at most. For
 * GELU z itself is off by up to 4, for the clamped SiLU by 1, which e^-z makes |z| times as many.
 * Below z = -88, where e^-z is taken to grow no further, both results are about x e^-88 or less. */
static double most_off(enum mmrt_activation activation, float argument, float factor,
                       float expected) {
    const double x = argument, z = 1.5957691216057308 * (x + 0.044715 * x * x * x);
    const double of_z = activation == MMRT_GELU           ? 4 * fmin(fabs(z), 88)
                        : activation == MMRT_CLAMPED_SILU ? fmin(fabs(1.702 * x), 88)
                                                          : 0;
    const double roundings = 7 + of_z;
    return ROUNDING * roundings * fabs((double)expected) + fabs(x * factor) * exp(-87.9) + 0x1p-149;
}

static void test_activate_of(struct kernel *kernel, enum mmrt_activation activation) {
    const struct guarded room = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *x = floats_in(room, n);
        static float given[MAX_LENGTH], expected[MAX_LENGTH];
        for (size_t i = 0; i < n; i++)
            given[i] = expected[i] = x[i] = any_argument();
        ref->activate(activation, expected, n);
        kernel->with.activate(activation, x, n);
        kernel->cases++;
        for (size_t i = 0; i < n; i++)
            check_near(kernel, activation_names[activation], n, i, expected[i], x[i],
                       most_off(activation, given[i], 1, expected[i]));
    }
    guarded_free(room);
}

static void test_activate(struct kernel *kernel) {
    for (int round = 0; round < 10; round++)
        for (int activation = 0; activation < MMRT_ACTIVATIONS; activation++)
            test_activate_of(kernel, (enum mmrt_activation)activation);
}

static void test_glu_of(struct kernel *kernel, enum mmrt_activation activation) {
    struct guarded room[3];
    for (int i = 0; i < 3; i++)
        room[i] = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++) {
        const size_t n = lengths[l];
        float *gate = floats_in(room[0], n), *up = floats_in(room[1], n);
        float *out = floats_in(room[2], n);
        static float expected[MAX_LENGTH];
        for (size_t i = 0; i < n; i++) {
            gate[i] = any_argument();
            up[i] = 10 * random_unit();
        }
        up[random_below(n)] = NAN;
        ref->glu(activation, gate, up, expected, n);
        kernel->with.glu(activation, gate, up, out, n);
        kernel->cases++;
        for (size_t i = 0; i < n; i++)
            check_near(kernel, activation_names[activation], n, i, expected[i], out[i],
                       most_off(activation, gate[i], fabsf(up[i]) + 1, expected[i]));
    }
    for (int i = 0; i < 3; i++)
        guarded_free(room[i]);
}

static void test_glu(struct kernel *kernel) {
    for (int round = 0; round < 10; round++)
        for (int activation = 0; activation < MMRT_ACTIVATIONS; activation++)
            test_glu_of(kernel, (enum mmrt_activation)activation);
}

static void test_largest(struct kernel *kernel) {
    struct guarded room = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++)
        for (int kind = 0; kind < 6; kind++) {
            const size_t n = lengths[l];
            float *x = floats_in(room, n);
            for (size_t i = 0; i < n; i++)
                x[i] = kind == 1 && random_below(2) ? -INFINITY : ldexpf(random_unit() - 1, 126);
            if (kind >= 2)
                x[random_below(n)] = kind == 2 ? INFINITY : ldexpf(random_unit(), 30 * (kind - 3));
            kernel->cases++;
            const float expected = ref->largest(x, n);
            CHECK(kernel->with.largest(x, n) == expected);
            for (size_t i = 0; i < n; i++)
                CHECK(expected >= x[i]);
            x[random_below(n)] = NAN; /* beside infinities of both signs */
            CHECK(isnan(kernel->with.largest(x, n)) && isnan(ref->largest(x, n)));
        }
    guarded_free(room);
}

/* The difference and the products have 3 roundings, of which exp makes as many times
 * as its argument says. The sum is of positive numbers. */
static void test_exponentials(struct kernel *kernel) {
    struct guarded room[2];
    for (int i = 0; i < 2; i++)
        room[i] = guarded_pages(MAX_LENGTH * sizeof(float));
    for (size_t l = 0; l < LENGTHS; l++)
        for (int kind = 0; kind < 8;
             kind++) { /* 0: all equal; 1: some are -infinity; 2: in place */
            const size_t n = lengths[l];
            const float scale = ldexpf(1.25f, 4 - kind), size = kind ? 20 : 0;
            float *x = floats_in(room[0], n), *out = kind == 2 ? x : floats_in(room[1], n);
            static float expected[MAX_LENGTH], given[MAX_LENGTH];
            for (size_t i = 0; i < n; i++)
                given[i] = x[i] =
                    kind == 1 && random_below(4) == 0 ? -INFINITY : size * (random_unit() - 1);
            const double sum = ref->exponentials(x, 0.25f, scale, expected, n);
            const double found = kernel->with.exponentials(x, 0.25f, scale, out, n);
            kernel->cases++;
            for (size_t i = 0; i < n; i++) {
                const double power = fabs(((double)given[i] - 0.25) * scale);
                const double roundings = 4 + 2 * fmin(power, 88);
                check_near(kernel, "", n, i, expected[i], out[i],
                           ROUNDING * roundings * (double)expected[i] + exp(-87));
            }
            check_near(kernel, " sum", n, 0, sum, found, sum * 1e-4 + (double)n * exp(-87));
        }
    for (int i = 0; i < 2; i++)
        guarded_free(room[i]);
}

#include "test_attend.h"

#include "test_states.h"

/* All bytes but the last few, and none after them. */
static void test_roof(struct kernel *kernel) {
    struct guarded room = guarded_pages(MAX_LENGTH);
    for (uint64_t n = 0; n <= 2000; n += 77) {
        uint64_t done = kernel->with.roof(MMRT_ROOF_READ, room.end - n, n);
        CHECK(done <= n && n - done < 64);
        for (int kind = MMRT_ROOF_INT8; kind <= MMRT_ROOF_FLOAT32; kind++) {
            done = kernel->with.roof((mmrt_roof_kind)kind, NULL, n);
            CHECK(done <= n && n - done < 1000);
        }
        kernel->cases++;
    }
    guarded_free(room);
}

/* clang-format off */
static struct kernel kernels[] = {
#define MMRT_MATRIX_KERNEL(ISA, isa, type)
#define MMRT_VECTOR_KERNEL(ISA, set, op)                                                           \
    {.name = #op " " #set,                                                                         \
     .isa = MMRT_ISA_##ISA,                                                                        \
     .test = test_##op,                                                                            \
     .with = {.op = mmrt_##op##_##set}},
    MMRT_VECTOR_KERNEL(REF, ref, quantize) /* ref itself, for all that is no comparison with it */
    MMRT_VECTOR_KERNEL(REF, ref, rms_norm)
    MMRT_VECTOR_KERNEL(REF, ref, add)
    MMRT_VECTOR_KERNEL(REF, ref, centre)
    MMRT_VECTOR_KERNEL(REF, ref, activate)
    MMRT_VECTOR_KERNEL(REF, ref, glu)
    MMRT_VECTOR_KERNEL(REF, ref, largest)
    MMRT_VECTOR_KERNEL(REF, ref, exponentials)
    MMRT_VECTOR_KERNEL(REF, ref, attend)
    MMRT_VECTOR_KERNEL(REF, ref, attend_merge)
    MMRT_VECTOR_KERNEL(REF, ref, delta)
    MMRT_VECTOR_KERNEL(REF, ref, scan)
    MMRT_VECTOR_KERNEL(REF, ref, roof)
#include "kernels/kernels.def"
    {.name = NULL},
};
/* clang-format on */

int main(int argc, char **argv) {
    take_cases(argc, argv);
    ref = mmrt_kernels_for(MMRT_ISA_REF);
    for (struct kernel *kernel = kernels; kernel->name; kernel++) {
        const char *missing = mmrt_isa_missing(kernel->isa);
        if (!missing)
            kernel->test(kernel);
        printf("%-20s %6zu cases%s%s\n", kernel->name, kernel->cases, missing ? ": " : "",
               missing ? missing : "");
        CHECK(missing || kernel->cases > 0);
    }
    return check_result();
}
