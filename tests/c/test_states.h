/* Heads that keep a state: the gated delta rule and selective state spaces, by single tokens and by
 * chunks, against `ref`, which takes one token after another. Included by test_vector.c. */

enum { MOST_ROWS = 128, MOST_STATE = MOST_ROWS * MOST_ROWS, MOST_CHUNK = MMRT_CHUNK * MOST_ROWS };

/* What a kernel reads and writes, each in pages of its own. */
struct state_rooms {
    struct guarded before, after, rows[3], out;
};

static struct state_rooms state_rooms(void) {
    return (struct state_rooms){
        .before = guarded_pages(MOST_STATE * sizeof(float)),
        .after = guarded_pages(MOST_STATE * sizeof(float)),
        .rows = {guarded_pages(MOST_CHUNK * sizeof(float)),
                 guarded_pages(MOST_CHUNK * sizeof(float)),
                 guarded_pages(MOST_CHUNK * sizeof(float))},
        .out = guarded_pages(MOST_CHUNK * sizeof(float)),
    };
}

static void state_rooms_free(struct state_rooms *rooms) {
    guarded_free(rooms->before);
    guarded_free(rooms->after);
    for (int i = 0; i < 3; i++)
        guarded_free(rooms->rows[i]);
    guarded_free(rooms->out);
}

static float *random_floats(struct guarded room, size_t n, float spread) {
    float *x = floats_in(room, n);
    for (size_t i = 0; i < n; i++)
        x[i] = spread * random_unit();
    return x;
}

/* A row of `width` for each token, one after another. */
static void set_rows(const float *rows[MMRT_CHUNK], const float *first, size_t width) {
    for (size_t t = 0; t < MMRT_CHUNK; t++)
        rows[t] = first + t * width;
}

static void set_results(float *rows[MMRT_CHUNK], float *first, size_t width) {
    for (size_t t = 0; t < MMRT_CHUNK; t++)
        rows[t] = first + t * width;
}

/* Some forget all, some hardly anything. */
static void draw_decays(float decays[MMRT_CHUNK]) {
    for (size_t t = 0; t < MMRT_CHUNK; t++)
        decays[t] = random_below(8) ? 1 - fabsf(random_unit()) / 4 : 0;
}

static float largest_of(const float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    return largest;
}

static const size_t state_sizes[] = {1, 32, 33, 128};

/* Sums of n_rows products, of numbers up to `largest` times `factors`. Those of a chunk are made of
 * those of the tokens before, and have a fifth of this at most. */
static double state_bound(size_t n_rows, double largest, double factors) {
    return ROUNDING * (double)(n_rows + 8) * largest * factors;
}

static void test_delta(struct kernel *kernel) {
    struct state_rooms rooms = state_rooms();
    static float expected[MOST_STATE], expected_out[MOST_CHUNK], others[MOST_CHUNK];
    for (int round = 0; round < 48; round++) {
        const size_t n_keys = state_sizes[round % 4], n_values = 32 * (size_t)(1 + round % 3);
        const size_t n = n_keys * n_values, n_tokens = round / 4 % 2 ? MMRT_CHUNK : 1;
        float *before = random_floats(rooms.before, n, 1);
        float *after = floats_in(rooms.after, n);
        float *values = random_floats(rooms.rows[2], MMRT_CHUNK * n_values, 1);
        float *out = floats_in(rooms.out, n_tokens * n_values);
        struct mmrt_delta d = {
            .before = before, .n_keys = n_keys, .n_values = n_values, .n = n_tokens};
        set_rows(d.keys, random_floats(rooms.rows[0], MMRT_CHUNK * n_keys, 0.125f), n_keys);
        set_rows(d.queries, random_floats(rooms.rows[1], MMRT_CHUNK * n_keys, 1), n_keys);
        set_rows(d.values, values, n_values);
        draw_decays(d.decays);
        for (size_t t = 0; t < MMRT_CHUNK; t++)
            d.betas[t] = fabsf(random_unit());
        d.after = expected;
        set_results(d.out, expected_out, n_values);
        ref->delta(&d);

        d.after = after;
        set_results(d.out, out, n_values);
        float *last = values + (n_tokens - 1) * n_values, was = *last;
        *last = NAN; /* which no token before it must see */
        kernel->with.delta(&d);
        memcpy(others, out, n_tokens * n_values * sizeof *out);
        *last = was;
        if (round % 2)
            d.after = before;
        kernel->with.delta(&d);
        kernel->cases++;
        const double largest = 1 + (double)largest_of(expected, n);
        const double most = state_bound(n_keys, largest, 1 + (double)n_keys / 8);
        for (size_t i = 0; i < n; i++)
            check_near(kernel, " state", n, i, expected[i], d.after[i], most);
        for (size_t i = 0; i < n_tokens * n_values; i++)
            check_near(kernel, "", n_tokens * n_values, i, expected_out[i], out[i],
                       most * (double)(n_keys + 1));
        for (size_t i = 0; i < (n_tokens - 1) * n_values; i++)
            check_near(kernel, " before another", n_values, i, others[i], out[i], 0);
    }
    state_rooms_free(&rooms);
}

/* Of single tokens equal to the bit: every set rounds where ref does. */
static void test_scan(struct kernel *kernel) {
    struct state_rooms rooms = state_rooms();
    static float expected[MOST_STATE], expected_out[MOST_CHUNK], others[MOST_CHUNK];
    for (int round = 0; round < 64; round++) {
        const size_t n_states = state_sizes[round / 2 % 4], n_values = 32 * (size_t)(1 + round % 4);
        const size_t n = n_states * n_values, n_tokens = round / 8 % 2 ? MMRT_CHUNK : 1;
        float *before = random_floats(rooms.before, n, 1);
        float *after = floats_in(rooms.after, n);
        float *x = random_floats(rooms.rows[2], MMRT_CHUNK * n_values, 1);
        float *out = floats_in(rooms.out, n_tokens * n_values);
        struct mmrt_scan s = {.before = before,
                              .n_states = n_states,
                              .n_values = n_values,
                              .n = n_tokens,
                              .skip = -0.7f};
        set_rows(s.b, random_floats(rooms.rows[0], MMRT_CHUNK * n_states, 1), n_states);
        set_rows(s.c, random_floats(rooms.rows[1], MMRT_CHUNK * n_states, 1), n_states);
        set_rows(s.x, x, n_values);
        draw_decays(s.decays);
        for (size_t t = 0; t < MMRT_CHUNK; t++)
            s.steps[t] = fabsf(random_unit());
        s.after = expected;
        set_results(s.out, expected_out, n_values);
        ref->scan(&s);

        s.after = after;
        set_results(s.out, out, n_values);
        float *last = x + (n_tokens - 1) * n_values, was = *last;
        *last = NAN; /* which no token before it must see */
        kernel->with.scan(&s);
        memcpy(others, out, n_tokens * n_values * sizeof *out);
        *last = was;
        if (round % 3)
            s.after = before;
        kernel->with.scan(&s);
        kernel->cases++;
        const double largest = 1 + (double)largest_of(expected, n);
        const double most = n_tokens > 1 ? state_bound(n_states, largest, 1) : 0;
        for (size_t i = 0; i < n; i++)
            check_near(kernel, " state", n, i, expected[i], s.after[i], most);
        for (size_t i = 0; i < n_tokens * n_values; i++)
            check_near(kernel, "", n_tokens * n_values, i, expected_out[i], out[i],
                       most * (double)(n_states + 1));
        for (size_t i = 0; i < (n_tokens - 1) * n_values; i++)
            check_near(kernel, " before another", n_values, i, others[i], out[i], 0);
    }
    state_rooms_free(&rooms);
}
