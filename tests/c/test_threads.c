/* What several threads may do at once: jobs of a pool, steps of one program, questions about them,
 * budgets that change meanwhile. For ThreadSanitizer; and steps are the same to the bit. The file
 * that is made is the first argument. */
#define _GNU_SOURCE
#include "base/pool.h"
#include "base/share.h"
#include "small_program.h"

#include <pthread.h>
#include <stdatomic.h>

enum { N_CALLERS = 3, POOL_THREADS = 3, PROMPT = 300, DECODED = 12 };

static void at_once(int n, void *(*const bodies[])(void *), void *const contexts[]) {
    pthread_t threads[8];
    for (int i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], NULL, bodies[i], contexts[i]) == 0);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

/* ---- the pool ---- */

enum { N_PIECES = 500 };

struct sums {
    mmrt_pool *pool;
    int values[N_PIECES]; /* plain: a barrier stands between who writes and who reads */
    struct mmrt_run runs[2][POOL_THREADS];
    long found[POOL_THREADS];
};

static void sum_job(void *context, int thread, int n_threads) {
    struct sums *sums = context;
    uint64_t piece;
    mmrt_share_begin(sums->runs[0], thread, n_threads, N_PIECES);
    while (mmrt_share_next(sums->runs[0], thread, n_threads, &piece))
        sums->values[piece]++;
    mmrt_pool_barrier(sums->pool);
    sums->found[thread] = 0;
    mmrt_share_begin(sums->runs[1], thread, n_threads, N_PIECES);
    while (mmrt_share_next(sums->runs[1], thread, n_threads, &piece))
        sums->found[thread] += sums->values[N_PIECES - 1 - piece];
}

static void *run_sums(void *pool) {
    struct sums *sums = calloc(1, sizeof *sums);
    mmrt_error error;
    sums->pool = pool;
    for (int i = 1; i <= 20; i++) {
        CHECK(mmrt_pool_run(pool, sum_job, sums, &error) == MMRT_OK);
        long all = 0;
        for (int thread = 0; thread < POOL_THREADS; thread++)
            all += sums->found[thread];
        CHECK(all == (long)i * N_PIECES);
    }
    free(sums);
    return NULL;
}

static void test_pool(void) {
    mmrt_pool *pool = NULL;
    mmrt_error error;
    CHECK(mmrt_pool_create(POOL_THREADS, &pool, &error) == MMRT_OK);
    at_once(N_CALLERS, (void *(*const[])(void *)){run_sums, run_sums, run_sums},
            (void *const[]){pool, pool, pool});
    mmrt_pool_free(pool);
}

/* ---- steps ---- */

struct model {
    mmrt_pool *pool;
    mmrt_state_store *store;
    mmrt_program *program;
    mmrt_state *states[N_CALLERS];
    const float *expected; /* [DECODED][VOCABULARY], or NULL */
    atomic_int n_reading;
};

struct text {
    struct model *model;
    int number;
};

static mmrt_status step(struct model *model, mmrt_state *state, uint64_t first, uint32_t n,
                        float *logits) {
    int32_t tokens[MOST_TOKENS];
    mmrt_error error;
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((first + i) * 37 % VOCABULARY);
    const mmrt_part part = {.state = state, .n = n, .n_outputs = 1};
    const mmrt_status status = mmrt_program_run(model->program, model->pool, &part, 1, tokens, NULL,
                                                logits, NULL, 0, NULL, NULL, NULL, &error);
    if (status)
        fprintf(stderr, "%s\n", error.message);
    return status;
}

/* A prompt, then tokens one by one, whose logits are written one after another. */
static void read_text(struct model *model, mmrt_state *state, float *logits) {
    for (uint64_t first = 0; first < PROMPT; first += MOST_TOKENS) {
        const uint64_t left = PROMPT - first;
        CHECK(!step(model, state, first, (uint32_t)(left < MOST_TOKENS ? left : MOST_TOKENS),
                    logits));
    }
    for (int i = 0; i < DECODED; i++)
        CHECK(!step(model, state, PROMPT + (uint64_t)i, 1, logits + i * VOCABULARY));
}

static void *read_and_compare(void *context) {
    const struct text *text = context;
    struct model *model = text->model;
    mmrt_state *state = model->states[text->number];
    float *logits = malloc(sizeof(float) * DECODED * VOCABULARY);
    for (int i = 0; i < 2; i++) {
        read_text(model, state, logits);
        CHECK(memcmp(logits, model->expected, sizeof(float) * DECODED * VOCABULARY) == 0);
        mmrt_state_rewind(state, (uint64_t)(i ? 0 : PROMPT / 2));
        mmrt_state_rewind(state, 0);
    }
    free(logits);
    model->n_reading--;
    return NULL;
}

static void *ask(void *context) {
    struct model *model = context;
    mmrt_stream_stats stats;
    mmrt_plan plan;
    mmrt_error error;
    while (model->n_reading) {
        uint64_t bytes = 0;
        for (int i = 0; i < N_CALLERS; i++)
            bytes += mmrt_state_bytes(model->states[i]) + mmrt_state_length(model->states[i]);
        mmrt_program_stream_stats(model->program, &stats);
        mmrt_program_plan(model->program, 0, &plan, NULL, &error);
        CHECK(stats.kept_bytes + stats.streamed_bytes == plan.total && bytes < 1 << 24);
    }
    return NULL;
}

/* Budgets from the least that would do to all. */
static void *change_budgets(void *context) {
    struct model *model = context;
    mmrt_plan plan;
    mmrt_error error;
    for (int i = 0; model->n_reading; i++) {
        mmrt_program_plan(model->program, 0, &plan, NULL, &error);
        const uint64_t more = plan.most > plan.least ? (plan.most - plan.least) / 4 : plan.most;
        const uint64_t budget = plan.least + (uint64_t)(i % 5) * more;
        CHECK(!mmrt_program_set_budget(model->program, budget, &error));
        if (i % 3 == 2)
            CHECK(!mmrt_program_lock_kept(model->program, &error));
        if (i % 7 == 6)
            CHECK(!mmrt_program_set_reader(model->program, MMRT_READER_MAPPED, &error));
    }
    return NULL;
}

static void test_steps(mmrt_mapping *mapping, mmrt_reader reader) {
    struct model model = {0};
    mmrt_error error;
    float *expected = malloc(sizeof(float) * DECODED * VOCABULARY);
    CHECK(mmrt_pool_create(POOL_THREADS, &model.pool, &error) == MMRT_OK);
    CHECK(mmrt_state_store_create(small_layers, LAYERS, &model.store, &error) == MMRT_OK);
    CHECK(make_small_program(mapping, model.store, POOL_THREADS, &model.program, &error) ==
          MMRT_OK);
    for (int i = 0; i < N_CALLERS; i++)
        CHECK(mmrt_state_create(model.store, &model.states[i], &error) == MMRT_OK);
    read_text(&model, model.states[0], expected);
    mmrt_state_rewind(model.states[0], 0);
    model.expected = expected;
    model.n_reading = N_CALLERS;
    CHECK(mmrt_program_set_reader(model.program, reader, &error) == MMRT_OK);
    struct text texts[N_CALLERS];
    for (int i = 0; i < N_CALLERS; i++)
        texts[i] = (struct text){&model, i};
    at_once(5,
            (void *(*const[])(void *)){read_and_compare, read_and_compare, read_and_compare, ask,
                                       change_budgets},
            (void *const[]){&texts[0], &texts[1], &texts[2], &model, &model});
    for (int i = 0; i < N_CALLERS; i++)
        mmrt_state_free(model.states[i]);
    CHECK(mmrt_state_store_bytes(model.store) == 0);
    mmrt_state_store_free(model.store);
    mmrt_program_free(model.program);
    mmrt_pool_free(model.pool);
    free(expected);
}

int main(int argc, char **argv) {
    mmrt_mapping *mapping = NULL;
    mmrt_error error;
    (void)argc;
    test_pool();
    CHECK(make_small_file(argv[1]));
    CHECK(mmrt_mapping_open(argv[1], &mapping, &error) == MMRT_OK);
    for (mmrt_reader reader = 0; reader < MMRT_READER_COUNT; reader++) {
        const mmrt_status usable = mmrt_reader_check(reader, mapping, &error);
        CHECK(usable == MMRT_OK || usable == MMRT_UNSUPPORTED); /* not everywhere */
        if (!usable)
            test_steps(mapping, reader);
    }
    mmrt_mapping_close(mapping);
    return check_result();
}
