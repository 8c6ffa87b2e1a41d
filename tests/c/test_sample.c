/* Draws from rows of logits that end where their page does: what is drawn is allowed and passes the
 * filters, whatever row, mask and settings. */
#define _GNU_SOURCE
#include "cases.h"
#include "mmrt.h"

enum { MAX_ROW = 3000, WORDS = (MAX_ROW + 31) / 32, RECENT = 70 };

static const size_t lengths[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 500, MAX_ROW};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static float any(float a, float b) {
    return random_below(2) ? a : b;
}

/* Which tokens may be drawn, by sorting all of them: a slow and simple way. */
static size_t rank_of(const float *x, const uint32_t *mask, size_t n, size_t token) {
    size_t rank = 0;
    for (size_t i = 0; i < n; i++)
        if (!mask || mask[i / 32] >> i % 32 & 1)
            rank += x[i] > x[token] || (x[i] == x[token] && i < token);
    return rank;
}

static void test_row(size_t n, struct guarded room, struct guarded mask_room) {
    float *x = (float *)(void *)room.end - n;
    const size_t words = (n + 31) / 32;
    uint32_t *mask = (uint32_t *)(void *)mask_room.end - words;
    int32_t recent[RECENT];
    mmrt_bias biases[RECENT];
    mmrt_alternative alternatives[8];
    mmrt_error error;
    for (size_t i = 0; i < n; i++)
        x[i] = random_below(9) ? 8 * random_unit() : any(-INFINITY, 3);
    for (size_t i = 0; i < words; i++)
        mask[i] = (uint32_t)next_random();
    for (size_t i = 0; i < RECENT; i++) {
        recent[i] = (int32_t)random_below(n);
        biases[i] = (mmrt_bias){(int32_t)random_below(n), any(-2, 2)};
    }
    const size_t allowed = random_below(n);
    x[allowed] = 9;
    mask[allowed / 32] |= 1u << allowed % 32;
    mmrt_draw draw = {
        .sampling = {.temperature = any(0, 0.8f),
                     .top_k = (uint32_t)random_below(5) * 10,
                     .top_p = any(1, 0.7f),
                     .min_p = any(0, 0.05f),
                     .repeat_penalty = any(1, 1.2f),
                     .presence_penalty = any(0, 0.5f),
                     .frequency_penalty = any(0, 0.5f)},
        .logits = x,
        .mask = random_below(2) ? mask : NULL,
        .recent = recent,
        .n_recent = random_below(2) ? RECENT : 0,
        .biases = biases,
        .n_biases = random_below(2) ? RECENT : 0,
        .uniform = (double)random_below(1000) / 1000,
        .wants_logprob = random_below(2),
        .n_alternatives = 8,
        .alternatives = alternatives,
    };
    CHECK(mmrt_sample(NULL, MMRT_ISA_REF, &draw, 1, n, &error) == MMRT_OK);
    const size_t token = (size_t)draw.token;
    CHECK(token < n && x[token] > -INFINITY);
    CHECK(!draw.mask || draw.mask[token / 32] >> token % 32 & 1);
    if (!draw.n_recent && !draw.n_biases && draw.sampling.top_k)
        CHECK(rank_of(x, draw.mask, n, token) < draw.sampling.top_k);
    if (!draw.n_recent && !draw.n_biases && draw.sampling.temperature == 0)
        CHECK(rank_of(x, draw.mask, n, token) == 0);
    if (draw.wants_logprob) {
        CHECK(draw.logprob <= 0);
        for (size_t i = 0; i < draw.n_alternatives; i++)
            CHECK(rank_of(x, NULL, n, (size_t)alternatives[i].token) == i);
    }
    /* The distribution is of as many tokens, and has the drawn one among them. */
    static int32_t tokens[MAX_ROW];
    static float odds[MAX_ROW];
    size_t found = 0, n_tokens;
    double sum = 0;
    CHECK(mmrt_distribution(MMRT_ISA_REF, &draw, n, tokens, odds, &n_tokens, &error) == MMRT_OK);
    for (size_t i = 0; i < n_tokens; i++) {
        found += tokens[i] == draw.token;
        sum += odds[i];
        CHECK(i == 0 || tokens[i] > tokens[i - 1]);
    }
    CHECK(found == 1 && fabs(sum - 1) < 1e-4);
}

static void test_refusals(void) {
    float x[3] = {1, NAN, 2};
    mmrt_error error;
    mmrt_draw draw = {.sampling = {.top_p = 1, .repeat_penalty = 1}, .logits = x};
    CHECK_STATUS(mmrt_sample(NULL, MMRT_ISA_REF, &draw, 1, 3, &error), MMRT_ARGUMENT, &error,
                 "not a number");
    CHECK_STATUS(mmrt_sample(NULL, MMRT_ISA_REF, &draw, 1, 0, &error), MMRT_ARGUMENT, &error,
                 "rows of 0");
}

int main(void) {
    const struct guarded room = guarded_pages(MAX_ROW * sizeof(float));
    const struct guarded mask = guarded_pages(WORDS * sizeof(uint32_t));
    for (int round = 0; round < 300; round++)
        for (size_t l = 0; l < LENGTHS; l++)
            test_row(lengths[l], room, mask);
    guarded_free(room);
    guarded_free(mask);
    test_refusals();
    return check_result();
}
