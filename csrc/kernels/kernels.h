/* The arithmetic of inference: one table of functions for each instruction set.
 *
 * Kernels know blocks, rows and columns; they know no files, tensors by name or threads: the caller
 * gives each thread its own rows, columns or heads. Weights may lie at any address and are never
 * read past their last byte. A row's result does not depend on which other rows are computed with
 * it, nor on the thread, nor on the other columns, except for whether they are few.
 */
#ifndef MMRT_KERNELS_H
#define MMRT_KERNELS_H

#include "mmrt.h"
#include "quant/quant.h"
#include "state/page.h"

enum { MMRT_TYPE_LIMIT = 144 }; /* tensor type ids are below this */

/* Columns that can be few: each row of weights is read once and multiplied with all of them. More
 * are multiplied with panels, whose unpacking pays only for them. */
enum { MMRT_FEW = 7 };

/* n columns of k activations each: as float32, and as int8 in groups of 32 where a quantised weight
 * reads them. A column is a row of each of these arrays:
 *
 *     x                  k floats
 *     q                  k bytes, x = d * q; then zeros up to `stride`
 *     d                  a float for each 32 elements
 *     sum16, sum32       d * (sum of q) for each 16, each 32
 *     start16, start32   -128 * (sum of q), likewise
 *
 * matvec reads the bytes of the last `few` columns, `last` first, in other orders:
 *
 *     planes             32 bytes for each j of 0 to 3: the first halves of groups j and j + 4 of
 *                        256 elements; then 32 more: their second halves
 *     strided            every fourth of 256 elements: 0 4 8 ..., 1 5 9 ..., 2 6 10 ..., 3 7 11 ...
 *
 * All weight types share this one form, so that a column is quantised once whatever reads it. A
 * finer scale than the 256-element blocks that K types have elsewhere costs them two instructions
 * in thirty and halves the rounding error. */
struct mmrt_columns {
    size_t k;
    size_t stride; /* multiple of 64, at least k rounded up to 256 */
    float *x;      /* [n][k] */
    int8_t *q;     /* [n][stride], -127 to 127 */
    float *d;      /* [n][stride / 32] */
    float *sum16;  /* [n][stride / 16], d times the sum of q over 16 elements */
    float *sum32;  /* [n][stride / 32], the same over 32 */
    /* -128 times the sum of q over 16 and 32 elements: where an integer dot product starts whose
     * weights are shifted by 128 to be unsigned */
    int32_t *start16; /* [n][stride / 16] */
    int32_t *start32; /* [n][stride / 32] */

    /* The last columns once more, `last` first, `few` of them, as matvec reads them against eight
     * groups of 32 weights at a time. For j from 0 to 3 `planes` has the first 16 elements of
     * groups j and j + 4, then their last 16. Fewer groups at the end of a row are read with those
     * before them, which are zero here; or, in a row of fewer than eight, with zeros behind them.
     */
    size_t last;
    size_t few;
    int8_t *planes;     /* [few][stride] */
    float *few_d;       /* [few][stride / 32], d */
    float *few_sum;     /* [few][stride / 32], sum32 */
    int32_t *few_start; /* [few][stride / 32], start32 */

    /* For types with grids that are looked up in vectors: every fourth of 256 elements from the
     * first on, then from the second, the third and the fourth. */
    int8_t *strided; /* [few][stride] */
};

/* Bytes that mmrt_columns_place needs for n columns of k, of which matvec can read the last `few`.
 */
size_t mmrt_columns_bytes(size_t n, size_t k, size_t few);

/* Lays out `columns` in zeroed, 64-byte aligned memory of that size; `last` is n - 1. */
void mmrt_columns_place(struct mmrt_columns *columns, size_t n, size_t k, size_t few, void *memory);

/* The columns up to `last`, one of the last `few`, as matvec reads them. */
static inline struct mmrt_columns mmrt_columns_up_to(const struct mmrt_columns *columns,
                                                     size_t last) {
    struct mmrt_columns part = *columns;
    const size_t less = columns->last - last, at = less * columns->stride;
    part.last = last;
    part.few -= less;
    if (!columns->q)
        return part;
    part.planes += at;
    part.strided += at;
    part.few_d += at / MMRT_GROUP;
    part.few_sum += at / MMRT_GROUP;
    part.few_start += at / MMRT_GROUP;
    return part;
}

/* Makes column `to` a copy of column `from`, quantised if that is. Both are among the last `few`.
 */
void mmrt_columns_copy(const struct mmrt_columns *columns, size_t from, size_t to);

/* Quantises elements [first, first + count) of one column; both multiples of 32. A group with NaN
 * or infinity gets d = NaN, so that the fault reaches the logits and is reported there. */
typedef void mmrt_quantize_fn(const struct mmrt_columns *columns, size_t column, size_t first,
                              size_t count);

/* y[c * y_stride + r] = row r of w times the last n columns, 1 to MMRT_FEW of them, for n_rows rows
 * that lie row_bytes apart. For quantised types the results equal those of n = 1 to the bit.
 * Quantised types read a column's q, float types its x. `next` is what will be multiplied after
 * these rows, and may be fetched ahead. */
typedef void mmrt_matvec_fn(const void *w, size_t row_bytes, size_t n_rows, const void *next,
                            const struct mmrt_columns *columns, size_t n, float *y,
                            size_t y_stride);

/* y[c * y_stride + r] = row r of w times column first + c, for n_rows rows and n_columns columns.
 * scratch: MMRT_MATMUL_SCRATCH bytes, 64-byte aligned, of this thread's own. */
typedef void mmrt_matmul_fn(const void *w, size_t row_bytes, size_t n_rows,
                            const struct mmrt_columns *columns, size_t first, size_t n_columns,
                            float *y, size_t y_stride, void *scratch);
enum { MMRT_MATMUL_SCRATCH = 160 << 10 };

/* y[r] = row first + r of a matrix of k columns times x, which is zero but for the elements
 * which[0..n), in rising order; columns[j] is column which[j]. To the bit what matvec gives, if all
 * weights are finite. n_rows, k and first are multiples of MMRT_BY_COLUMNS; scratch as above. */
typedef void mmrt_by_columns_fn(const uint8_t *const *columns, size_t first, size_t n_rows,
                                const uint32_t *which, size_t n, const float *x, size_t k, float *y,
                                void *scratch);
enum { MMRT_BY_COLUMNS = 64 };

/* out[i] = w[i] * x[i] / sqrt(mean(x^2) + eps), n elements (Zhang and Sennrich 2019,
 * arXiv:1910.07467). w NULL: ones. out may be x. */
typedef void mmrt_rms_norm_fn(const float *x, const float *w, float eps, float *out, size_t n);

/* out[i] = x[i] - mean(x), n elements. */
typedef void mmrt_centre_fn(const float *x, float *out, size_t n);

/* y[i] += x[i]. */
typedef void mmrt_add_fn(float *y, const float *x, size_t n);

enum mmrt_activation {
    MMRT_SILU,         /* x / (1 + exp(-x)) */
    MMRT_GELU,         /* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) */
    MMRT_RELU2,        /* x^2 where x > 0, else 0 (So et al. 2021, arXiv:2109.08668) */
    MMRT_CLAMPED_SILU, /* x / (1 + exp(-1.702 x)) of x up to 7 (OpenAI 2025, arXiv:2508.10925) */
    MMRT_RELU,         /* x where x > 0, else 0 */
};
enum { MMRT_ACTIVATIONS = MMRT_RELU + 1 };
#define MMRT_CLAMP       7.0f
#define MMRT_CLAMP_SLOPE 1.702f

/* x[i] = activation(x[i]). */
typedef void mmrt_activate_fn(enum mmrt_activation activation, float *x, size_t n);

/* out[i] = activation(gate[i]) * up[i] (Shazeer 2020, arXiv:2002.05202); with the clamped SiLU,
 * up[i] from -7 to 7 and one more. */
typedef void mmrt_glu_fn(enum mmrt_activation activation, const float *gate, const float *up,
                         float *out, size_t n);

/* The largest of n > 0 elements; NaN if one of them is. */
typedef float mmrt_largest_fn(const float *x, size_t n);

/* out[i] = exp((x[i] - largest) * scale) for n elements that are at most `largest`; returns their
 * sum. -infinity gives 0. out may be x. */
typedef float mmrt_exponentials_fn(const float *x, float largest, float scale, float *out,
                                   size_t n);

/* Scaled dot-product attention for the query heads that share one key-value head, over a tile of
 * consecutive tokens: out = softmax(scale * q k^T) v, with an online softmax (Milakov and
 * Gimelshein 2018, arXiv:1805.02867). The token at position p sees the keys at positions p - window
 * + 1 to p, of those from begin to end - 1.
 *
 * With `weights` it is a part of that: out = sum of exp(score - largest) v, not divided by the sum
 * of exponentials; attend_merge makes attention of the parts.
 *
 * A sink (Xiao et al. 2023, arXiv:2309.17453) is a head's score of no key: it takes its share of
 * the softmax and adds no value. It belongs to one of the parts. */
struct mmrt_attention {
    const struct mmrt_columns *queries; /* a token's heads follow one another, head_dim each;
                                           quantised if keys are */
    size_t column;                      /* of the first token */
    size_t element;                     /* of the first head */
    float *out;                         /* [n_tokens][out_stride], value_dim each */
    size_t out_stride;
    size_t n_tokens;
    size_t n_heads;
    size_t head_dim;     /* of keys: a multiple of 16, or of 32 if keys or values are Q8_0 */
    size_t value_dim;    /* likewise */
    bool values_in_keys; /* values are the first value_dim elements of keys: v_type and v_offset are
                            of no account */
    uint32_t k_type;     /* F16 or Q8_0 */
    uint32_t v_type;
    uint64_t position;     /* of the first token */
    uint64_t window;       /* 0: all that came before */
    uint64_t begin;        /* a multiple of 32; the last token sees one of these keys at least */
    uint64_t end;          /* at most position + n_tokens */
    uint8_t *const *pages; /* page i holds positions 32 i to 32 i + 31 */
    size_t k_offset;       /* bytes from a page's start to this layer's and head's keys */
    size_t v_offset;
    float scale;
    float softcap;      /* 0: none; else scores become softcap * tanh(score / softcap) */
    const float *sinks; /* [n_heads], or NULL */
    float *weights; /* NULL, or of each row, in order: its largest score, its sum of exponentials */
    void *scratch;  /* mmrt_attend_scratch() bytes, 64-byte aligned */
};
typedef void mmrt_attend_fn(const struct mmrt_attention *a);

/* The first key of the page that holds the first key visible to tokens from `position` on. */
static inline uint64_t mmrt_attend_begin(uint64_t position, uint64_t window) {
    const uint64_t first = window && position + 1 > window ? position + 1 - window : 0;
    return first - first % MMRT_PAGE_KEYS;
}

/* out[row][dim] = attention over the keys of all parts, sums[part][row][dim] with
 * weights[part][row][2]; added up in order. */
typedef void mmrt_attend_merge_fn(const float *sums, const float *weights, size_t n_parts,
                                  size_t n_rows, size_t dim, float *out);

/* Tokens in a row that read and write a head's state together. */
enum { MMRT_CHUNK = 8 };

/* n tokens of the gated delta rule (Yang et al. 2025, arXiv:2412.06464) for one head, 1 or
 * MMRT_CHUNK: a state of n_keys rows of n_values, which rows of keys are to be mapped to. Of each
 * token in turn,
 *
 *     after = decay * before + key (beta * (value - decay * before^T key))^T
 *     out = after^T query
 *
 * The first tokens of a chunk get, to the bit, what they would get with others after them. */
struct mmrt_delta {
    const float *before; /* [n_keys][n_values] */
    float *after;        /* likewise; may be `before` */
    size_t n_keys;
    size_t n_values; /* a multiple of 32 */
    size_t n;
    const float *keys[MMRT_CHUNK], *queries[MMRT_CHUNK]; /* [n_keys] each */
    const float *values[MMRT_CHUNK];                     /* [n_values] */
    float decays[MMRT_CHUNK], betas[MMRT_CHUNK];
    float *out[MMRT_CHUNK]; /* [n_values] */
};
typedef void mmrt_delta_fn(const struct mmrt_delta *d);

/* n tokens of a selective state space (Dao and Gu 2024, arXiv:2405.21060) for one head, 1 or
 * MMRT_CHUNK: a state of n_states rows of n_values. Of each token in turn,
 *
 *     after = decay * before + b (step * x)^T
 *     out = after^T c + skip * x
 *
 * All instruction sets round single tokens alike; chunks as for mmrt_delta. */
struct mmrt_scan {
    const float *before; /* [n_states][n_values] */
    float *after;        /* likewise; may be `before` */
    size_t n_states;
    size_t n_values; /* a multiple of 32 */
    size_t n;
    const float *b[MMRT_CHUNK], *c[MMRT_CHUNK]; /* [n_states] each */
    const float *x[MMRT_CHUNK];                 /* [n_values] */
    float decays[MMRT_CHUNK], steps[MMRT_CHUNK];
    float skip;
    float *out[MMRT_CHUNK]; /* [n_values] */
};
typedef void mmrt_scan_fn(const struct mmrt_scan *s);

/* A tile has at most ROWS rows: n_tokens * n_heads; KEYS keys at a time are in scratch. */
enum { MMRT_ATTEND_ROWS = 64, MMRT_ATTEND_KEYS = 128 };
size_t mmrt_attend_scratch(size_t head_dim, size_t value_dim);

/* Reads about n bytes at data, in order, or makes about n multiply-adds of registers, as fast as it
 * can be done; returns how many. */
typedef uint64_t mmrt_roof_fn(mmrt_roof_kind kind, const uint8_t *data, uint64_t n);

struct mmrt_kernels {
    mmrt_matvec_fn *matvec[MMRT_TYPE_LIMIT]; /* NULL where the type has no unpack */
    mmrt_matmul_fn *matmul[MMRT_TYPE_LIMIT];
    size_t few[MMRT_TYPE_LIMIT];          /* the most columns that matvec is the faster for */
    mmrt_isa matrix_isa[MMRT_TYPE_LIMIT]; /* where those three come from */
    mmrt_by_columns_fn *by_columns[MMRT_TYPE_LIMIT]; /* NULL where there is none */
    mmrt_quantize_fn *quantize;
    mmrt_rms_norm_fn *rms_norm;
    mmrt_centre_fn *centre;
    mmrt_add_fn *add;
    mmrt_activate_fn *activate;
    mmrt_glu_fn *glu;
    mmrt_largest_fn *largest;
    mmrt_exponentials_fn *exponentials;
    mmrt_attend_fn *attend;
    mmrt_attend_merge_fn *attend_merge;
    mmrt_delta_fn *delta;
    mmrt_scan_fn *scan;
    mmrt_roof_fn *roof;
};

/* The table of an instruction set that can run here (mmrt_isa_missing() is NULL): every entry that
 * the set has no kernel for comes from the next lower one, down to `ref`. */
const struct mmrt_kernels *mmrt_kernels_for(mmrt_isa isa);

#endif
