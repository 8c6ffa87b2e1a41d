/* Choosing tokens from logits: biases, penalties, filters, a draw, log-probabilities. */
#include "base/pool.h"
#include "base/status.h"
#include "sample/candidates.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The memory that one thread needs for a draw; it is used for draw after draw, and grows. */
struct workspace {
    float *maxima;  /* [blocks] */
    float *scratch; /* [blocks] */
    struct mmrt_changed *changed;
    size_t changed_room;
    struct mmrt_candidates candidates;
};

static void free_workspace(struct workspace *space) {
    free(space->maxima);
    free(space->scratch);
    free(space->changed);
    mmrt_candidates_free(&space->candidates);
}

static int by_token(const void *a, const void *b) {
    const struct mmrt_changed *x = a, *y = b;
    return (x->token > y->token) - (x->token < y->token);
}

/* The bias, repetition penalty (Keskar et al. 2019, arXiv:1909.05858), then presence and frequency.
 * What is not finite stays: infinity and NaN are refused later, and -infinity is never drawn. */
static float changed_logit(const mmrt_sampling *s, float logit, double bias, size_t times) {
    if (!isfinite(logit))
        return logit;
    double x = (double)logit + bias;
    if (times) {
        x = x > 0 ? x / s->repeat_penalty : x * s->repeat_penalty;
        x -= s->presence_penalty + s->frequency_penalty * (double)times;
    }
    return (float)fmin(fmax(x, -(double)FLT_MAX), (double)FLT_MAX);
}

static bool has_penalties(const mmrt_sampling *s) {
    return s->repeat_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

/* Finds the logits that biases and penalties change: one for each different token among them. */
static bool change(struct workspace *space, const mmrt_draw *draw, struct mmrt_row *row) {
    const size_t n_recent = has_penalties(&draw->sampling) ? draw->n_recent : 0;
    const size_t n = n_recent + draw->n_biases;
    if (n > space->changed_room) {
        void *grown = realloc(space->changed, n * sizeof *space->changed);
        if (!grown)
            return false;
        space->changed = grown;
        space->changed_room = n;
    }
    struct mmrt_changed *changed = space->changed;
    /* At first a bias, or NAN for a token seen lately. */
    for (size_t i = 0; i < n_recent; i++)
        changed[i] = (struct mmrt_changed){draw->recent[i], NAN};
    for (size_t i = 0; i < draw->n_biases; i++)
        changed[n_recent + i] = (struct mmrt_changed){draw->biases[i].token, draw->biases[i].bias};
    if (n)
        qsort(changed, n, sizeof *changed, by_token);
    size_t kept = 0;
    for (size_t i = 0, next; i < n; i = next) {
        const int32_t token = changed[i].token;
        double bias = 0;
        size_t times = 0;
        for (next = i; next < n && changed[next].token == token; next++)
            if (isnan(changed[next].logit))
                times++;
            else
                bias += (double)changed[next].logit;
        const float logit = changed_logit(&draw->sampling, draw->logits[token], bias, times);
        changed[kept++] = (struct mmrt_changed){token, logit};
    }
    row->changed = changed;
    row->n_changed = kept;
    return true;
}

/* The weights of a block, exp((logit - largest) * scale); returns their sum. */
static float block_weights(const struct mmrt_row *row, size_t block, float scale,
                           float weights[MMRT_BLOCK_LOGITS]) {
    float room[MMRT_BLOCK_LOGITS];
    return row->kernels->exponentials(mmrt_row_block(row, block, room), row->largest, scale,
                                      weights, MMRT_BLOCK_LOGITS);
}

/* The sum of the weights of the whole row; those of the blocks are put into row->scratch. */
static double row_weight(const struct mmrt_row *row, float scale) {
    double sum = 0;
    for (size_t block = 0; block < row->n_blocks; block++) {
        float weights[MMRT_BLOCK_LOGITS];
        row->scratch[block] = block_weights(row, block, scale, weights);
        sum += (double)row->scratch[block];
    }
    return sum;
}

/* The nucleus of the whole row (Holtzman et al. 2019, arXiv:1904.09751). A few blocks usually hold
 * all of it. */
static bool nucleus(struct mmrt_candidates *c, const struct mmrt_row *row, double top_p) {
    const double mass = top_p * row_weight(row, 1);
    for (size_t blocks = 64;; blocks *= 8) {
        const float floor = mmrt_row_floor(row, blocks);
        if (!mmrt_candidates_collect(c, row, floor))
            return false;
        if (mmrt_candidates_weigh(c, row, 1) >= mass || floor == -INFINITY)
            break;
    }
    mmrt_candidates_keep(c, mass);
    return true;
}

static bool top_k(struct mmrt_candidates *c, const struct mmrt_row *row, size_t k) {
    if (!mmrt_candidates_collect(c, row, mmrt_row_floor(row, k)))
        return false;
    for (size_t i = 0; i < c->n; i++)
        c->weights[i] = 1;
    mmrt_candidates_keep(c, (double)k);
    return true;
}

/* Applies the filters in order. *all: whether there are none; every token is then a candidate. */
static bool filter(struct mmrt_candidates *c, const struct mmrt_row *row, const mmrt_sampling *s,
                   bool *all) {
    *all = true;
    if (s->top_k && s->top_k < row->n) {
        if (!top_k(c, row, s->top_k))
            return false;
        *all = false;
    }
    if (s->top_p < 1) {
        if (*all) {
            if (!nucleus(c, row, s->top_p))
                return false;
        } else {
            const double sum = mmrt_candidates_weigh(c, row, 1);
            mmrt_candidates_keep(c, s->top_p * sum);
        }
        *all = false;
    }
    if (s->min_p > 0) {
        const float floor = row->largest + (float)log(s->min_p);
        if (!*all)
            mmrt_candidates_above(c, floor);
        else if (!mmrt_candidates_collect(c, row, floor))
            return false;
        *all = false;
    }
    return true;
}

/* The first of n weights at which the running sum, which starts at `before`, exceeds `mark`; n if
 * there is none. */
static size_t walk(const float *weights, size_t n, double before, double mark) {
    size_t i = 0;
    for (; i < n; i++) {
        before += (double)weights[i];
        if (before > mark)
            break;
    }
    return i;
}

static int32_t draw_candidate(struct mmrt_candidates *c, const struct mmrt_row *row, float scale,
                              double uniform) {
    const double sum = mmrt_candidates_weigh(c, row, scale);
    const size_t i = walk(c->weights, c->n, 0, uniform * sum);
    return c->tokens[i < c->n ? i : c->n - 1]; /* past the end: the product was rounded up */
}

static int32_t draw_any(const struct mmrt_row *row, float scale, double uniform) {
    const double mark = uniform * row_weight(row, scale);
    double before = 0;
    int32_t last = 0; /* the last token seen whose weight is above 0 */
    for (size_t block = 0; block < row->n_blocks; block++) {
        const double sum = (double)row->scratch[block];
        if (sum > 0 && before + sum >= mark) {
            float weights[MMRT_BLOCK_LOGITS];
            block_weights(row, block, scale, weights);
            size_t i = walk(weights, MMRT_BLOCK_LOGITS, before, mark);
            if (i < MMRT_BLOCK_LOGITS)
                return (int32_t)(block * MMRT_BLOCK_LOGITS + i);
            while (i > 0 && !(weights[i - 1] > 0))
                i--;
            last = (int32_t)(block * MMRT_BLOCK_LOGITS + i) - 1;
        }
        before += sum;
    }
    return last;
}

/* The likeliest token; of equally likely ones, the lowest. */
static int32_t likeliest(const struct mmrt_row *row) {
    size_t block = 0, i = 0;
    float room[MMRT_BLOCK_LOGITS];
    while (row->maxima[block] != row->largest)
        block++;
    const float *x = mmrt_row_block(row, block, room);
    while (x[i] != row->largest)
        i++;
    return (int32_t)(block * MMRT_BLOCK_LOGITS + i);
}

static int by_rank(const void *a, const void *b) {
    const mmrt_alternative *x = a, *y = b;
    if (x->logprob != y->logprob)
        return x->logprob < y->logprob ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

/* Log-probabilities by the model's own logits, without biases, penalties, mask and temperature. */
static mmrt_status tell_probabilities(struct mmrt_candidates *c, struct mmrt_row *row,
                                      mmrt_draw *draw, mmrt_error *err) {
    if (!mmrt_row_restore(row) || row->largest == INFINITY)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "logits: one that the mask forbids is NaN or infinite");
    const double log_sum = log(row_weight(row, 1));
    draw->logprob = (float)((double)(draw->logits[draw->token] - row->largest) - log_sum);
    if (!draw->n_alternatives)
        return MMRT_OK;
    if (!top_k(c, row, draw->n_alternatives < row->n ? draw->n_alternatives : row->n))
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for log-probabilities");
    for (size_t i = 0; i < c->n; i++)
        draw->alternatives[i] = (mmrt_alternative){
            c->tokens[i], (float)((double)(c->logits[i] - row->largest) - log_sum)};
    draw->n_alternatives = c->n;
    qsort(draw->alternatives, c->n, sizeof *draw->alternatives, by_rank);
    return MMRT_OK;
}

/* The row as the filters see it. It has a finite largest logit, and no NaN. */
static mmrt_status make_row(struct workspace *space, const mmrt_draw *draw, struct mmrt_row *row,
                            mmrt_error *err) {
    for (size_t i = 0; i < draw->n_recent; i++)
        if (draw->recent[i] < 0 || (size_t)draw->recent[i] >= row->n)
            return mmrt_fail(err, MMRT_ARGUMENT, "history: token ids must be below %zu", row->n);
    for (size_t i = 0; i < draw->n_biases; i++)
        if (draw->biases[i].token < 0 || (size_t)draw->biases[i].token >= row->n)
            return mmrt_fail(err, MMRT_ARGUMENT, "logit_bias: token ids must be below %zu", row->n);
    if (!change(space, draw, row))
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for changed logits");
    if (!mmrt_row_scan(row, space->maxima, space->scratch))
        return mmrt_fail(err, MMRT_ARGUMENT, "logits: one of them is not a number");
    if (isfinite(row->largest))
        return MMRT_OK;
    if (row->mask && row->largest < 0)
        return mmrt_fail(err, MMRT_ARGUMENT, "no token is allowed that has a finite logit");
    return mmrt_fail(err, MMRT_ARGUMENT, "logits: the highest is %g", (double)row->largest);
}

/* 1 / temperature, within what a float can hold: 0 and infinity would make NaN of some logits. */
static float scale_of(const mmrt_sampling *sampling) {
    return (float)fmin(fmax(1 / sampling->temperature, (double)FLT_MIN), (double)FLT_MAX);
}

static mmrt_status sample(struct workspace *space, const struct mmrt_kernels *kernels,
                          mmrt_draw *draw, size_t n, mmrt_error *err) {
    const mmrt_sampling *s = &draw->sampling;
    struct mmrt_candidates *c = &space->candidates;
    struct mmrt_row row = {.kernels = kernels, .logits = draw->logits, .n = n, .mask = draw->mask};
    mmrt_status status = make_row(space, draw, &row, err);
    if (status)
        return status;
    bool all = true;
    if (s->temperature == 0)
        draw->token = likeliest(&row);
    else if (!filter(c, &row, s, &all))
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for candidates");
    else if (all)
        draw->token = draw_any(&row, scale_of(s), draw->uniform);
    else
        draw->token = draw_candidate(c, &row, scale_of(s), draw->uniform);
    return draw->wants_logprob ? tell_probabilities(c, &row, draw, err) : MMRT_OK;
}

static mmrt_status make_workspace(struct workspace *space, size_t vocabulary, mmrt_error *err) {
    const size_t blocks = (vocabulary + MMRT_BLOCK_LOGITS - 1) / MMRT_BLOCK_LOGITS;
    space->maxima = malloc(blocks * sizeof *space->maxima);
    space->scratch = malloc(blocks * sizeof *space->scratch);
    return space->maxima && space->scratch ? MMRT_OK
                                           : mmrt_fail(err, MMRT_NO_MEMORY, "no memory to sample");
}

static mmrt_status check_vocabulary(size_t vocabulary, mmrt_error *err) {
    return vocabulary && vocabulary <= INT32_MAX
               ? MMRT_OK
               : mmrt_fail(err, MMRT_ARGUMENT, "logits: rows of %zu", vocabulary);
}

/* ---- one distribution ---- */

static mmrt_status tell_distribution(struct workspace *space, const struct mmrt_kernels *kernels,
                                     const mmrt_draw *draw, size_t vocabulary, int32_t *tokens,
                                     float *probabilities, size_t *n, mmrt_error *err) {
    struct mmrt_candidates *c = &space->candidates;
    struct mmrt_row row = {
        .kernels = kernels, .logits = draw->logits, .n = vocabulary, .mask = draw->mask};
    mmrt_status status = make_row(space, draw, &row, err);
    if (status)
        return status;
    if (draw->sampling.temperature == 0) {
        *n = 1;
        tokens[0] = likeliest(&row);
        probabilities[0] = 1;
        return MMRT_OK;
    }
    bool all;
    if (!filter(c, &row, &draw->sampling, &all) ||
        (all && !mmrt_candidates_collect(c, &row, -INFINITY)))
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for candidates");
    const double sum = mmrt_candidates_weigh(c, &row, scale_of(&draw->sampling));
    *n = c->n;
    memcpy(tokens, c->tokens, c->n * sizeof *tokens);
    for (size_t i = 0; i < c->n; i++)
        probabilities[i] = (float)(c->weights[i] / sum);
    return MMRT_OK;
}

mmrt_status mmrt_distribution(mmrt_isa isa, const mmrt_draw *draw, size_t vocabulary,
                              int32_t *tokens, float *probabilities, size_t *n, mmrt_error *err) {
    struct workspace space = {0};
    mmrt_status status = check_vocabulary(vocabulary, err);
    if (!status)
        status = make_workspace(&space, vocabulary, err);
    if (!status)
        status = tell_distribution(&space, mmrt_kernels_for(isa), draw, vocabulary, tokens,
                                   probabilities, n, err);
    free_workspace(&space);
    return status;
}

/* ---- several rows ---- */

struct job {
    const struct mmrt_kernels *kernels;
    mmrt_draw *draws;
    size_t n_draws, vocabulary;
    atomic_size_t next;
    atomic_bool failed;
    mmrt_error error; /* of the thread that set `failed` */
};

static void sample_rows(void *context, int thread, int n_threads) {
    struct job *job = context;
    struct workspace space = {0};
    mmrt_error error;
    (void)thread, (void)n_threads;
    size_t i = atomic_fetch_add(&job->next, 1);
    if (i >= job->n_draws)
        return;
    mmrt_status status = make_workspace(&space, job->vocabulary, &error);
    for (; !status && i < job->n_draws; i = atomic_fetch_add(&job->next, 1))
        status = sample(&space, job->kernels, &job->draws[i], job->vocabulary, &error);
    if (status && !atomic_exchange(&job->failed, true))
        job->error = error;
    free_workspace(&space);
}

mmrt_status mmrt_sample(mmrt_pool *pool, mmrt_isa isa, mmrt_draw *draws, size_t n_draws,
                        size_t vocabulary, mmrt_error *err) {
    struct job job = {.kernels = mmrt_kernels_for(isa),
                      .draws = draws,
                      .n_draws = n_draws,
                      .vocabulary = vocabulary};
    mmrt_status status = check_vocabulary(vocabulary, err);
    if (status)
        return status;
    if (pool && n_draws > 1)
        status = mmrt_pool_run(pool, sample_rows, &job, err);
    else
        sample_rows(&job, 0, 1);
    if (!status && atomic_load(&job.failed)) {
        status = job.error.status;
        if (err)
            *err = job.error;
    }
    return status;
}
