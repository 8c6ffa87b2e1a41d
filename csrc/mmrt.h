/* mmrt: a memory-mapped tensor runtime. The one header that callers outside csrc/ include; what it
 * says of machines and files is in mmrt_files.h.
 *
 * Who owns what: every `open`, `create` or `parse` hands out an opaque handle that the matching
 * `close` or `free` takes back (NULL is allowed there). Pointers into a handle live as long as it.
 * Every function that can fail returns an mmrt_status and, unless that is MMRT_OK, has filled the
 * mmrt_error that it was given (NULL: no message wanted). Nothing here aborts or prints.
 */
#ifndef MMRT_H
#define MMRT_H

#include "mmrt_files.h"

/* ---- tensor types (quant/) ----------------------------------------------------------------- */

/* Writes n_elements float32 values from consecutive blocks of the type: exact, scalar.
 * ARGUMENT for an unknown type or a number of elements that is not whole blocks, UNSUPPORTED for a
 * type of which only the sizes are known. */
mmrt_status mmrt_dequantize(uint32_t type, const void *blocks, float *out, size_t n_elements,
                            mmrt_error *err);

/* ---- matrices (tools/) ---------------------------------------------------------------------- */

/* A matrix in file order: `rows` rows of `cols` elements, whole blocks of `type` each, one after
 * another from any address on. `name` is for messages and belongs to the caller. */
typedef struct mmrt_weight {
    const void *data;
    uint32_t type;
    uint64_t rows;
    uint64_t cols;
    const char *name;
    uint64_t stack; /* so many matrices of that shape follow one another; 0 is as 1 */
} mmrt_weight;

/* y[c * rows + r] = row r of w times column c of x, which is float32 [n][cols]; computed on all
 * threads of the pool. For quantised types x is rounded to int8 in groups of 32. IO if w is in a
 * mapped file that was cut short or cannot be read. */
mmrt_status mmrt_matmul(mmrt_pool *pool, mmrt_isa isa, const mmrt_weight *w, const float *x,
                        size_t n, float *y, mmrt_error *err);

/* What bounds the speed of a machine: bytes read in order, multiply-adds of bytes, and of floats.
 */
typedef enum mmrt_roof_kind { MMRT_ROOF_READ, MMRT_ROOF_INT8, MMRT_ROOF_FLOAT32 } mmrt_roof_kind;

/* Reads n bytes at data, or makes n multiply-adds, shared out among the pool's threads; *done is
 * how many were done. The caller times it. */
mmrt_status mmrt_roof(mmrt_pool *pool, mmrt_isa isa, mmrt_roof_kind kind, const void *data,
                      uint64_t n, uint64_t *done, mmrt_error *err);

/* The set whose kernel multiplies matrices of this type when `isa` is chosen. */
mmrt_isa mmrt_matmul_isa(mmrt_isa isa, uint32_t type);

/* Writes rows [first, first + n_rows) of w to `blocks` as blocks of `type`, each as near to its
 * values as the type comes in the sense of least squares; computed on all threads of the pool, and
 * the same for any number of them. Rows are to be whole blocks of both types (else ARGUMENT).
 * UNSUPPORTED for a type that is not written here, or w's if it cannot be read; FORMAT, naming w
 * and the place, for a value that is NaN or larger than 65504, the largest of binary16. */
mmrt_status mmrt_quantize(mmrt_pool *pool, const mmrt_weight *w, uint64_t first, uint64_t n_rows,
                          uint32_t type, void *blocks, mmrt_error *err);

/* ---- sampling (sample/) -------------------------------------------------------------------- */

/* How a token is chosen, in this order: biases, repetition penalty, presence and frequency penalty,
 * top-k, top-p, min-p, a draw at this temperature. mmrt/core/sampling.py has the formula of each.
 */
typedef struct mmrt_sampling {
    double temperature;       /* 0: the likeliest token, whatever the filters */
    uint32_t top_k;           /* 0: off */
    double top_p;             /* above 0; 1: off */
    double min_p;             /* 0: off */
    double repeat_penalty;    /* above 0; 1: off */
    double presence_penalty;  /* 0: off */
    double frequency_penalty; /* 0: off */
} mmrt_sampling;

typedef struct mmrt_alternative {
    int32_t token;
    float logprob;
} mmrt_alternative;

/* What is added to the logit of a token. */
typedef struct mmrt_bias {
    int32_t token;
    float bias;
} mmrt_bias;

/* One choice: what it is made from, and what came of it. */
typedef struct mmrt_draw {
    mmrt_sampling sampling;
    const float *logits;   /* [vocabulary], left as they are */
    const uint32_t *mask;  /* bit i % 32 of word i / 32: whether token i is allowed. NULL: all */
    const int32_t *recent; /* [n_recent] tokens that penalties apply to, in any order */
    size_t n_recent;
    const mmrt_bias *biases; /* [n_biases] finite, in any order */
    size_t n_biases;
    double uniform; /* in [0, 1): picks one of the candidates, which are in order of token id */
    bool wants_logprob;
    size_t n_alternatives; /* with wants_logprob: room in `alternatives`; then how many there are */
    mmrt_alternative *alternatives; /* the likeliest tokens, of equal ones the lower id first */
    int32_t token;                  /* the choice */
    float logprob; /* of the choice, by the model's own logits: without biases, penalties, mask,
                      filters and temperature; so are those of the alternatives */
} mmrt_draw;

/* Chooses n_draws tokens on the pool's threads (NULL: on this one). The choices do not depend on
 * the threads. ARGUMENT if a logit is NaN, the largest is not finite, no token is allowed, or
 * `recent` or `biases` has an id outside the vocabulary. */
mmrt_status mmrt_sample(mmrt_pool *pool, mmrt_isa isa, mmrt_draw *draws, size_t n_draws,
                        size_t vocabulary, mmrt_error *err);

/* What a draw is made from: the tokens that pass the filters, by rising id, and the probability of
 * each; these add up to 1. tokens and probabilities have room for the vocabulary; *n is set to the
 * number of tokens. Errors as above. */
mmrt_status mmrt_distribution(mmrt_isa isa, const mmrt_draw *draw, size_t vocabulary,
                              int32_t *tokens, float *probabilities, size_t *n, mmrt_error *err);

/* ---- state of sequences (state/) ------------------------------------------------------------ */

/* What a layer keeps of the tokens that a sequence has read. */
typedef enum mmrt_state_kind {
    MMRT_STATE_NOTHING,
    MMRT_STATE_PAGES,          /* keys and values, in pages of 32 tokens */
    MMRT_STATE_PAGES_OF_LAYER, /* none of its own: it reads those of another layer */
    MMRT_STATE_BLOCK,          /* bytes that every step writes anew, as recurrent layers do */
} mmrt_state_kind;

typedef struct mmrt_layer_state {
    mmrt_state_kind kind;
    uint32_t n_heads; /* PAGES: key-value heads */
    uint32_t k_dim;   /* elements of a head's key */
    uint32_t v_dim;   /* elements of its value */
    bool v_in_keys;   /* values are the first of the keys' elements, and not stored again */
    uint32_t k_type;  /* ids of tensor types: F16 or Q8_0 */
    uint32_t v_type;
    uint32_t window;      /* keys that a token sees, its own the last; 0 for all */
    uint32_t layer;       /* PAGES_OF_LAYER: an earlier one, which has pages */
    uint64_t block_bytes; /* BLOCK */
} mmrt_layer_state;

/* Elements that a head takes in pages and in the buffers of attention: k_dim or v_dim rounded up to
 * a multiple of 16, or of 32 if keys or values are Q8_0. Values within keys take none in pages. */
uint32_t mmrt_key_room(const mmrt_layer_state *layer);
uint32_t mmrt_value_room(const mmrt_layer_state *layer);

/* Whether attention leaves heads that a JOIN has to put together: they are no whole groups of 32
 * elements, in which vectors are quantised. */
bool mmrt_heads_are_apart(const mmrt_layer_state *layer);

/* The memory of all sequences of one model, and how it is laid out. A page holds what all layers
 * keep of 32 tokens; several sequences may hold the same page. Calls from several threads queue. A
 * child that is forked finds it, and every sequence, whole. */
typedef struct mmrt_state_store mmrt_state_store;

/* ARGUMENT or UNSUPPORTED, naming the layer, for what cannot be laid out. */
mmrt_status mmrt_state_store_create(const mmrt_layer_state *layers, uint32_t n_layers,
                                    mmrt_state_store **out, mmrt_error *err);

/* Lets go of it; it is freed with the last program and sequence that use it. */
void mmrt_state_store_free(mmrt_state_store *store);

uint64_t mmrt_state_store_bytes(mmrt_state_store *store);       /* held by all sequences together */
uint64_t mmrt_state_page_bytes(const mmrt_state_store *store);  /* of 32 tokens, in all layers */
uint64_t mmrt_state_block_bytes(const mmrt_state_store *store); /* of all layers that keep one */
uint64_t mmrt_state_store_mapped_bytes(mmrt_state_store *store); /* see mmrt_state_attach() */

/* What sequences share. */
typedef struct mmrt_state_sharing {
    uint64_t held;    /* bytes in memory: as mmrt_state_store_bytes */
    uint64_t logical; /* bytes that they would hold together if none shared any */
    uint64_t
        copies; /* pages that were copied so far, as a sequence went on in one that others held */
} mmrt_state_sharing;

void mmrt_state_store_sharing(mmrt_state_store *store, mmrt_state_sharing *sharing);

/* What a model keeps of one sequence. One call at a time may change it; other threads may ask for
 * its length and bytes during that call. */
typedef struct mmrt_state mmrt_state;

mmrt_status mmrt_state_create(mmrt_state_store *store, mmrt_state **out, mmrt_error *err);
void mmrt_state_free(mmrt_state *state);
uint64_t mmrt_state_length(const mmrt_state *state); /* tokens */

/* Bytes that the sequence would hold if no other held any of them; and of these, those that another
 * holds too. Pages of files are in neither. */
uint64_t mmrt_state_bytes(const mmrt_state *state);
uint64_t mmrt_state_shared_bytes(const mmrt_state *state);
uint64_t mmrt_state_mapped_bytes(const mmrt_state *state); /* the pages of files */

/* One of its pages. */
typedef struct mmrt_page_held {
    uint64_t number;  /* the same in all sequences that hold this page, and in no others */
    uint32_t holders; /* so many sequences */
} mmrt_page_held;

/* Its pages in order, the first `most` of them; returns how many it holds. */
uint64_t mmrt_state_page_table(const mmrt_state *state, mmrt_page_held *pages, uint64_t most);

/* Bytes that would be taken for the sequence to become `length` tokens long; each: by an exact part
 * of a step. */
uint64_t mmrt_state_growth(const mmrt_state *state, uint64_t length, bool each);

/* Another sequence of the same tokens, which holds the same memory: nothing is copied until one of
 * the two goes on, and then the last page alone, if that is not full. Not during a step. */
mmrt_status mmrt_state_fork(const mmrt_state *state, mmrt_state **out, mmrt_error *err);

/* Forgets the tokens from `length` on, gives their pages back, and returns how many are left:
 * `length`, or where layers keep a block, which cannot be undone, those of the last checkpoint
 * before it; without one 0. */
uint64_t mmrt_state_rewind(mmrt_state *state, uint64_t length);

/* Gives back what is there for further steps alone, if the sequence has ended for now. Not during a
 * step. */
void mmrt_state_trim(mmrt_state *state);

/* How many tokens rewind would leave. */
uint64_t mmrt_state_reach(const mmrt_state *state, uint64_t length);

/* Checkpoints: blocks as they were at some lengths. The first sets one where the sequence is now;
 * it takes a block's memory once the sequence goes on. Where layers keep none, nothing is done. The
 * second lists the lengths, the shortest first, `most` of them, and returns how many there are. */
mmrt_status mmrt_state_checkpoint(mmrt_state *state, mmrt_error *err);
uint64_t mmrt_state_checkpoints(const mmrt_state *state, uint64_t *lengths, uint64_t most);

/* There is no checkpoint of this length any more. */
void mmrt_state_forget(mmrt_state *state, uint64_t length);

/* Has a sequence hold the checkpoints of another, whose tokens must be the same as far as either
 * goes, and where it ends. ARGUMENT for sequences of several stores; after NO_MEMORY it holds some.
 */
mmrt_status mmrt_state_adopt(mmrt_state *state, const mmrt_state *other, mmrt_error *err);

/* Pages in files. A file holds the pages of up to MMRT_SAVED_TOKENS tokens in a row, laid out from
 * a byte on as in memory; so whoever maps it reads them where they are, and several processes hold
 * them once. Where layers keep blocks, that of its last token may follow them. */
enum { MMRT_SAVED_TOKENS = 256 };

/* Bytes of a file that they take, also if there are fewer tokens; the rest is a hole then. */
uint64_t mmrt_state_saved_bytes(const mmrt_state_store *store);

/* Writes the pages of tokens [first, first + n) of the sequence, which nobody is to change
 * meanwhile; first is a multiple of MMRT_SAVED_TOKENS. The block after them, if the sequence has
 * it, follows after mmrt_state_saved_bytes(). *sum: what mmrt_state_attach() checks them by.
 * ARGUMENT for tokens that it does not have; IO; UNSUPPORTED where no layer keeps pages. */
mmrt_status mmrt_state_save(const mmrt_state *state, uint64_t first, uint64_t n, int fd,
                            uint64_t offset, uint64_t *sum, mmrt_error *err);

/* Lengthens the sequence, which has a multiple of MMRT_SAVED_TOKENS, by n tokens: their pages are
 * those of the file. All of them are read once, to be checked. with_block: so is the block, which
 * is copied; without it, a sequence whose layers keep one takes no step before it goes back to a
 * checkpoint, or another file has brought one. ARGUMENT for another length or an
 * offset within a page of the system, FORMAT for bytes that do not give `sum`, IO; then nothing has
 * changed. */
mmrt_status mmrt_state_attach(mmrt_state *state, const char *path, uint64_t offset, uint64_t n,
                              bool with_block, uint64_t sum, mmrt_error *err);

/* IO if a file whose pages the sequence holds has lost some of them: they read as zeros now. */
mmrt_status mmrt_state_check(const mmrt_state *state, mmrt_error *err);

/* ---- programs (graph/, step/) ---------------------------------------------------------------- */

/* A forward pass as a flat list of operations on numbered buffers. A buffer holds `width` float32
 * values for each token of a step. Weights, buffers and rotation tables are added first and named
 * by the index that adding them returned; -1 stands for none. */
typedef struct mmrt_program mmrt_program;

typedef enum mmrt_op_kind {
#define MMRT_OP(NAME, name, meaning) MMRT_OP_##NAME,
#include "graph/ops.def"
} mmrt_op_kind;

/* How the logits of a router become the weights of experts. */
typedef enum mmrt_gating {
    MMRT_GATING_SOFTMAX,       /* over all experts */
    MMRT_GATING_SIGMOID,       /* of each */
    MMRT_GATING_CHOSEN,        /* softmax over the chosen ones */
    MMRT_GATING_SQRT_SOFTPLUS, /* sqrt(log(1 + e^x)) of each */
} mmrt_gating;

/* graph/ops.def says what the fields mean, and to which operations. */
typedef struct mmrt_op {
    mmrt_op_kind kind;
    int32_t weights[3];
    int32_t biases[3]; /* LINEAR, UNIT, GLU, experts, LOGITS, NORM, CONV: added to what a weight
                          gives */
    float scales[3];   /* all these but NORM: what that is multiplied with before, 1 for nothing */
    int32_t stack_scales[3]; /* experts: weights that have such a scale for each matrix, or -1 */
#define MMRT_OP_FIELD(type, name, none, meaning) type name;
#include "graph/ops.def"
} mmrt_op;

/* An operation of the kind of this name, with all fields at their defaults. ARGUMENT: there is no
 * such kind. */
mmrt_status mmrt_op_init(const char *kind, mmrt_op *op, mmrt_error *err);

/* Sets the field of this name. ARGUMENT: there is none, or it cannot hold the value. */
mmrt_status mmrt_op_set(mmrt_op *op, const char *field, double value, mmrt_error *err);

/* For sequences of this store. max_tokens: the most that one step takes; scratch grows with it.
 * exact: what is computed for a token depends on the tokens before it in its text alone, to the
 * bit; else also, by rounding, on how many tokens a step has. Steps of one token cost the same
 * either way. */
mmrt_status mmrt_program_create(mmrt_isa isa, uint32_t max_tokens, mmrt_state_store *store,
                                bool exact, mmrt_program **out, mmrt_error *err);
void mmrt_program_free(mmrt_program *program);
mmrt_status mmrt_program_add_weight(mmrt_program *program, const mmrt_weight *weight,
                                    int32_t *index, mmrt_error *err);
/* A buffer has per_token columns of `width` values for each token. */
mmrt_status mmrt_program_add_buffer(mmrt_program *program, uint32_t width, uint32_t per_token,
                                    int32_t *index, mmrt_error *err);

/* Rotations by position * frequencies[i], i < n_pairs, times `magnitude`. */
mmrt_status mmrt_program_add_rope(mmrt_program *program, const double *frequencies,
                                  uint32_t n_pairs, float magnitude, int32_t *index,
                                  mmrt_error *err);

/* Appends an operation; FORMAT, naming the weight, if its shapes do not fit. */
mmrt_status mmrt_program_add_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* Allocates scratch for n_threads. To be called once, after the last operation. */
mmrt_status mmrt_program_finish(mmrt_program *program, int n_threads, mmrt_error *err);

/* Bytes that steps of n tokens take. They stay taken, unless weights have a budget. */
uint64_t mmrt_program_scratch_bytes(const mmrt_program *program, uint32_t n);

/* Which rows of a weight each thread multiplies with, of n_threads that run a step: rows
 * first_rows[t] to first_rows[t + 1] - 1 are thread t's (n_threads + 1 numbers), but for those at
 * the end of its run that a thread which is done early takes over. False: no operation multiplies
 * with this weight. */
bool mmrt_program_shares(const mmrt_program *program, int32_t weight, int n_threads,
                         uint64_t *first_rows);

/* A note that a step takes: the time, and the process's counters so far, of all threads. All fields
 * are 64 bits wide, so that marks are rows of an array. */
typedef struct mmrt_mark {
    int64_t op; /* by the caller: taken after this operation; -1: before the first */
    int64_t ns; /* CLOCK_MONOTONIC */
    int64_t minor_faults;
    int64_t major_faults;
    int64_t read_bytes; /* from storage */
} mmrt_mark;

/* Tokens of a step that follow one another in one text. Several parts of a step may be of one text:
 * each goes on where the one before it ends. */
typedef struct mmrt_part {
    mmrt_state *state;  /* the text's */
    uint32_t n;         /* tokens, 1 or more */
    uint32_t n_outputs; /* logits are wanted of so many of them, the last; 0: of none */
    bool exact; /* the whole step is computed as an exact program computes it; until the next one
                   the text can go back to each of these tokens, 7 at most */
} mmrt_part;

/* Tokens that a step takes at most if one of its parts is exact and the program is not. */
enum { MMRT_EXACT_TOKENS = 7 };

/* Runs one step on 1 to max_tokens tokens, first those of parts[0], then those of parts[1] and so
 * on, each at the positions from its state's length on, and appends them to the states. Writes the
 * logits that are wanted to logits, in the same order: float32 [sum of n_outputs][vocabulary]. On
 * any failure all states are as before. Weights that only logits need are not read where none is
 * wanted. NOT_FINITE if a logit or a hidden row is NaN or infinite; IO, naming the tensor, if a
 * weight's file was cut short or cannot be read.
 *
 * Of a program that begins with TAKE, rows are the hidden rows of the tokens, float32
 * [tokens][width], and ids are not looked at; of others NULL. Of one that ends with GIVE, hidden
 * rows of all tokens are written to logits likewise. Both have the tokens without logits before the
 * others, each half in the order of the parts: what one program gives another takes, with the same
 * parts.
 *
 * Fills in marks[0] to marks[n_marks - 1], in which `op` rises; each costs a system call of 1 to
 * 2 us. choices, unless NULL, receives the numbers of the experts that the ROUTE operations choose,
 * each the best first: of one operation after another, int32 [tokens][n_used], the tokens without
 * logits before the others. What an operation leaves out stays as it is. */
mmrt_status mmrt_program_run(mmrt_program *program, mmrt_pool *pool, const mmrt_part *parts,
                             int32_t n_parts, const int32_t *tokens, const float *rows,
                             float *logits, mmrt_mark *marks, int32_t n_marks, int32_t *choices,
                             mmrt_poll_fn *poll, void *poll_context, mmrt_error *err);

/* ---- streamed weights (source/, graph/) ----------------------------------------------------- */

/* How weights that are not kept in memory are read in each step. */
typedef enum mmrt_reader {
#define MMRT_READER(id, name, meaning) MMRT_READER_##id,
#include "source/readers.def"
#undef MMRT_READER
    MMRT_READER_COUNT
} mmrt_reader;

const char *mmrt_reader_name(mmrt_reader reader);

/* UNSUPPORTED, and why, if this file cannot be read in this way. */
mmrt_status mmrt_reader_check(mmrt_reader reader, mmrt_mapping *mapping, mmrt_error *err);

/* Bytes a second that this reader brings from the disk, as measured by reading a range of the file,
 * which it drops from memory before. */
mmrt_status mmrt_reader_probe(mmrt_reader reader, mmrt_mapping *mapping, uint64_t offset,
                              uint64_t length, double *bytes_per_second, mmrt_error *err);

/* From now on a budget can be set for the program's weights. The files are the mappings that they
 * lie in. To be called once, after finish. Changes nothing else. */
mmrt_status mmrt_program_stream(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                                mmrt_error *err);

/* How to read what is not kept; at first, MAPPED. UNSUPPORTED changes nothing. */
mmrt_status mmrt_program_set_reader(mmrt_program *program, mmrt_reader reader, mmrt_error *err);

/* Matrices are kept on mapped pages as far as `budget` bytes allow, together with the ring of
 * buffers through which the others are streamed, spread evenly over a step. Vectors (norms, biases)
 * are always kept in addition. The first step after this loads what is to be kept; what is no
 * longer kept is dropped at once. From the first budget that does not hold everything, faults on
 * the files read single pages, and long steps give their scratch back. May be called at any time;
 * if a step is running, it waits for the step to end. NO_MEMORY, naming the smallest budget that is
 * enough, changes nothing. */
mmrt_status mmrt_program_set_budget(mmrt_program *program, uint64_t budget, mmrt_error *err);

/* From now on what is kept is locked in memory when it has been loaded, as far as RLIMIT_MEMLOCK
 * allows. A budget that keeps everything then loads everything too. */
mmrt_status mmrt_program_lock_kept(mmrt_program *program, mmrt_error *err);

/* Columns that have been read on demand are forgotten, so that the next step reads all that it
 * needs: to measure what it is worth to keep them. Waits for a step that runs. */
mmrt_status mmrt_program_forget_columns(mmrt_program *program, mmrt_error *err);

/* What replaces what among the experts that are in memory within a budget: the lowest score, or the
 * one that was used longest ago. docs/streaming.md has the rules. At first, SCORE. */
typedef enum mmrt_policy { MMRT_POLICY_SCORE, MMRT_POLICY_LRU } mmrt_policy;

mmrt_status mmrt_program_set_policy(mmrt_program *program, mmrt_policy policy, mmrt_error *err);

/* All in bytes. */
typedef struct mmrt_plan {
    uint64_t total; /* of the matrices that a step reads */
    uint64_t kept;
    uint64_t ring;
    uint64_t request; /* the most that is read at once, experts apart */
    uint64_t experts; /* their matrices, of which steps read those that are chosen */
    uint64_t chosen;  /* of these, by a token */
    uint64_t n_experts;
    uint64_t cache;   /* of slots for these, and for those that pass; 0: all are kept */
    uint64_t slots;   /* experts that they have room for */
    uint64_t rest;    /* what is kept beside the budget: vectors */
    uint64_t columns; /* of slots for columns that are read on demand; 0: none are */
    uint64_t least;   /* the smallest budget */
    uint64_t most;    /* the one that keeps everything */
} mmrt_plan;

/* What set_budget would do. kept: NULL, or room for the kept bytes of each weight. With NO_MEMORY
 * the plan keeps nothing, and gives the smallest budget that is enough. */
mmrt_status mmrt_program_plan(const mmrt_program *program, uint64_t budget, mmrt_plan *plan,
                              uint64_t *kept, mmrt_error *err);

/* What has become of the experts that steps have chosen while a budget does not keep all. */
typedef struct mmrt_demand_stats {
    uint64_t wanted;     /* experts, by steps and layers */
    uint64_t found;      /* of these, in memory or on their way there */
    uint64_t read_units; /* matrices */
    uint64_t read_bytes;
    uint64_t slots; /* of this size; of a program: of all sizes, and the largest size */
    uint64_t slot_bytes;
    double stall_seconds; /* in which some thread waited for a read */
} mmrt_demand_stats;

/* What streaming has done so far. */
typedef struct mmrt_stream_stats {
    mmrt_reader reader;
    uint64_t steps;
    uint64_t kept_bytes;     /* by the present plan; of matrices, experts among them */
    uint64_t locked_bytes;   /* of these, so far */
    uint64_t streamed_bytes; /* likewise: what a step reads */
    uint64_t ring_bytes;
    uint64_t cache_bytes; /* of slots for experts */
    mmrt_demand_stats demand;
    uint64_t read_bytes;       /* of streamed weights */
    uint64_t loaded_bytes;     /* of kept ones, onto their mapped pages */
    double stall_seconds;      /* in which some thread waited for a read */
    double busy_seconds;       /* in which some streamed weight was being read */
    mmrt_demand_stats columns; /* those of matrices, while a budget does not keep all */
} mmrt_stream_stats;

void mmrt_program_stream_stats(const mmrt_program *program, mmrt_stream_stats *stats);

/* The layers with experts on demand; of each, a weight that it has, and its statistics. */
int32_t mmrt_program_banks(const mmrt_program *program);
void mmrt_program_bank_stats(const mmrt_program *program, int32_t bank, int32_t *weight,
                             mmrt_demand_stats *stats);

#endif
