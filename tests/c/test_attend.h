/* Attention against `ref`; a part of test_vector.c.
 *
 * Pages are single allocations; keys and values that do not exist yet are NaN, and pages that lie
 * wholly before every window are NULL. */

enum {
    MAX_DIM = 256,
    MAX_POSITIONS = 700 + 64,
    PAGES = MAX_POSITIONS / MMRT_PAGE_KEYS + 1,
    K_OFFSET = 2 * 33, /* any even number */
};

/* One problem, its memory and what it came to. */
static struct attention {
    struct mmrt_attention a;
    uint8_t *pages[PAGES];
    struct mmrt_columns queries;
    void *memory; /* theirs */
    float sinks[9];
    float *expected, *found;
    size_t n_out; /* floats in expected and found */
    float sharpness;
} t;

static uint64_t first_key(uint64_t position) {
    return t.a.window && position + 1 > t.a.window ? position + 1 - t.a.window : 0;
}

static void put_half(uint8_t *at, float value) {
    const uint16_t bits = mmrt_f32_to_f16(value);
    memcpy(at, &bits, 2);
}

/* Where the scale of element j of key or value i is, after the bytes of a part of a page. */
static uint8_t *scale_at(uint8_t *part, size_t i, size_t j) {
    return part + MMRT_PAGE_KEYS * t.a.head_dim +
           (j / MMRT_GROUP * MMRT_PAGE_KEYS + i) * sizeof(float);
}

/* Element j of key or value i, which is byte or half number `index` of its part of a page. */
static void put(uint32_t type, uint8_t *part, size_t i, size_t j, size_t index) {
    if (type == MMRT_TYPE_F16) {
        put_half(part + 2 * index, random_unit());
        return;
    }
    const float scale = (0.5f + 0.5f * random_unit() * random_unit()) / 127;
    part[index] = (uint8_t)((int)random_below(255) - 127);
    if (j % MMRT_GROUP == 0)
        memcpy(scale_at(part, i, j), &scale, sizeof scale);
}

static void make_pages(void) {
    const size_t dim = t.a.head_dim;
    const size_t page_bytes = t.a.v_offset + mmrt_page_bytes(t.a.v_type, dim);
    const uint64_t end = t.a.position + t.a.n_tokens;
    for (uint64_t p = 0; p < PAGES; p++) {
        const uint64_t key = p * MMRT_PAGE_KEYS;
        t.pages[p] = NULL;
        if (key >= end || key + MMRT_PAGE_KEYS <= first_key(t.a.position))
            continue;
        uint8_t *page = t.pages[p] = checked(malloc(page_bytes));
        memset(page, 0xff, page_bytes);
        for (size_t i = 0; i < MMRT_PAGE_KEYS && key + i < end; i++)
            for (size_t j = 0; j < dim; j++) {
                put(t.a.k_type, page + K_OFFSET, i, j,
                    t.a.k_type == MMRT_TYPE_F16 ? j * MMRT_PAGE_KEYS + i
                                                : (j / 4 * MMRT_PAGE_KEYS + i) * 4 + j % 4);
                if (!t.a.values_in_keys)
                    put(t.a.v_type, page + t.a.v_offset, i, j, i * dim + j);
            }
    }
    t.a.pages = t.pages;
}

/* The queries, in columns between others. */
static void make_queries(void) {
    const size_t n = t.a.column + t.a.n_tokens + random_below(2);
    const size_t width = t.a.element + t.a.n_heads * t.a.head_dim + 32 * random_below(3);
    const size_t bytes = mmrt_columns_bytes(n, width, 0);
    t.memory = checked(aligned_alloc(64, bytes));
    memset(t.memory, 0, bytes);
    mmrt_columns_place(&t.queries, n, width, 0, t.memory);
    for (size_t i = 0; i < n * width; i++)
        t.queries.x[i] = random_unit();
    for (size_t i = 0; i < n && t.a.k_type != MMRT_TYPE_F16; i++)
        ref->quantize(&t.queries, i, 0, width);
    t.a.queries = &t.queries;
}

static void make_attention(size_t dim, uint64_t position, uint64_t window, float softcap) {
    const uint32_t others = dim % MMRT_GROUP ? 1 : 2;
    static const uint32_t types[] = {MMRT_TYPE_F16, MMRT_TYPE_Q8_0};
    const uint32_t k_type = types[random_below(others)], v_type = types[random_below(others)];
    static const float sharpnesses[] = {1, 4, 30};
    const bool in_keys = dim >= MMRT_GROUP && !random_below(3);
    const size_t value_dim = in_keys ? MMRT_GROUP * (1 + random_below(dim / MMRT_GROUP)) : dim;
    const size_t heads = 1 + random_below(9), most = MMRT_ATTEND_ROWS / heads;
    const size_t tokens = 1 + random_below(random_below(4) ? 3 : most < 16 ? most : 16);
    t.sharpness = sharpnesses[random_below(3)];
    for (size_t i = 0; i < heads; i++)
        t.sinks[i] = t.sharpness * random_unit();
    t.a = (struct mmrt_attention){
        .column = random_below(3),
        .element = 32 * random_below(3),
        .out_stride = heads * value_dim + random_below(40),
        .n_tokens = tokens,
        .n_heads = heads,
        .head_dim = dim,
        .value_dim = value_dim,
        .values_in_keys = in_keys,
        .k_type = k_type,
        .v_type = v_type,
        .position = position,
        .window = window,
        .begin = mmrt_attend_begin(position, window),
        .end = position + tokens,
        .k_offset = K_OFFSET,
        .v_offset = K_OFFSET + mmrt_page_bytes(k_type, dim) + 2 * random_below(20),
        .scale = t.sharpness / sqrtf((float)dim),
        .softcap = softcap,
        .sinks = random_below(3) ? NULL : t.sinks,
    };
    make_pages();
    t.n_out = (tokens - 1) * t.a.out_stride + heads * value_dim;
    make_queries();
    t.expected = checked(malloc(t.n_out * sizeof *t.expected));
    t.found = checked(malloc(t.n_out * sizeof *t.found));
}

static void free_attention(void) {
    for (size_t p = 0; p < PAGES; p++)
        free(t.pages[p]);
    free(t.memory);
    free(t.expected);
    free(t.found);
}

/* Runs `attend` on `tokens` and `heads` from `token` and `head` on, into `out`. */
static void attend_part(mmrt_attend_fn *attend, size_t token, size_t tokens, size_t head,
                        size_t heads, float *out, struct guarded room) {
    struct mmrt_attention part = t.a;
    const size_t bytes = mmrt_attend_scratch(t.a.head_dim, t.a.value_dim);
    CHECK(bytes % 64 == 0);
    part.scratch = room.end - bytes;
    memset(part.scratch, 0xff, bytes);
    part.column += token;
    part.element += head * part.head_dim;
    part.sinks = part.sinks ? part.sinks + head : NULL;
    part.out = out + token * part.out_stride + head * part.value_dim;
    part.position += token;
    part.begin = mmrt_attend_begin(part.position, part.window);
    part.end = part.position + tokens;
    part.n_tokens = tokens;
    part.n_heads = heads;
    attend(&part);
}

/* How far an output may be from ref's. Values are below 1 and their probabilities sum to 1, so it
 * is the largest relative error of a probability: twice that of a score's e^s (its own and the
 * total's). A score is a sum of head_dim products of about a quarter, times `sharpness` /
 * sqrt(head_dim); a soft cap adds some roundings of its own size. Then come some for the
 * exponentials, and one for each key that is added up. Sums are off by the square root of the
 * number of their roundings, taken twice. */
static double attend_bound(void) {
    const double root = sqrt((double)t.a.head_dim);
    const double keys = (double)(t.a.position + t.a.n_tokens);
    const double score = t.sharpness * root / 4 * 2 * root + 4 * (double)t.a.softcap;
    return ROUNDING * (2 * score + 16 + 2 * sqrt(keys));
}

static void attend_failed(const struct kernel *kernel, const char *what, size_t i, float expected,
                          float found) {
    case_failed("%s%s: keys %s, values %s, head_dim %zu, value_dim %zu%s, heads %zu, tokens %zu, "
                "position %zu, "
                "window %zu, softcap %g, sinks %d, "
                "sharpness %g, token %zu, element %zu: expected %.9g, found %.9g",
                kernel->name, what, mmrt_format_find(t.a.k_type)->name,
                mmrt_format_find(t.a.v_type)->name, t.a.head_dim, t.a.value_dim,
                t.a.values_in_keys ? " in keys" : "", t.a.n_heads, t.a.n_tokens,
                (size_t)t.a.position, (size_t)t.a.window, (double)t.a.softcap, t.a.sinks != NULL,
                (double)t.sharpness, i / t.a.out_stride, i % t.a.out_stride, (double)expected,
                (double)found);
}

static void fill_out(float *out) {
    for (size_t i = 0; i < t.n_out; i++)
        out[i] = -12345;
}

/* That one token of one head alone comes to the same bits. */
static void check_alone(struct kernel *kernel, struct guarded room) {
    const size_t token = random_below(t.a.n_tokens), head = random_below(t.a.n_heads);
    float *out = checked(malloc(t.n_out * sizeof *out));
    fill_out(out);
    attend_part(kernel->with.attend, token, 1, head, 1, out, room);
    kernel->cases++;
    const size_t at = token * t.a.out_stride + head * t.a.value_dim;
    for (size_t i = 0; i < t.n_out; i++) {
        const float expected = i >= at && i < at + t.a.value_dim ? t.found[i] : -12345;
        if (memcmp(&out[i], &expected, sizeof expected) != 0)
            attend_failed(kernel, " of one row", i, expected, out[i]);
    }
    free(out);
}

/* Where NaN is put, and how far it spreads. */
struct place {
    uint8_t *at;
    size_t bytes;    /* of a half or a float */
    size_t first, n; /* elements that it makes NaN of the head's */
};

static struct place place_in_page(uint32_t type, uint8_t *part, size_t i, size_t j, size_t index) {
    if (type == MMRT_TYPE_F16)
        return (struct place){part + 2 * index, 2, j, 1};
    return (struct place){scale_at(part, i, j), sizeof(float), j - j % MMRT_GROUP, MMRT_GROUP};
}

static void put_nan(struct place place) {
    const float nan = NAN;
    if (place.bytes == 2)
        put_half(place.at, NAN);
    else
        memcpy(place.at, &nan, sizeof nan);
}

/* NaN in one number of q, of a key or of a value: results that come of it are NaN, the others as
 * they were. */
static void check_nan(struct kernel *kernel, struct guarded room) {
    const size_t token = random_below(t.a.n_tokens), head = random_below(t.a.n_heads);
    const size_t dim = t.a.value_dim, j = random_below(dim);
    const uint64_t key = t.a.position + token; /* which this token and later ones see */
    const size_t i = key % MMRT_PAGE_KEYS, column = t.a.column + token;
    const size_t element = t.a.element + head * t.a.head_dim + j;
    uint8_t *page = t.pages[key / MMRT_PAGE_KEYS];
    float *in_q = t.a.k_type == MMRT_TYPE_F16
                      ? t.queries.x + column * t.queries.k + element
                      : t.queries.d + (column * t.queries.stride + element) / MMRT_GROUP;
    const struct place places[] = {
        {(uint8_t *)in_q, sizeof *in_q, 0, dim},
        place_in_page(t.a.k_type, page + K_OFFSET, i, j, j * MMRT_PAGE_KEYS + i),
        place_in_page(t.a.v_type, page + t.a.v_offset, i, j, i * dim + j),
    };
    float *out = checked(malloc(t.n_out * sizeof *out));
    for (int kind = 0; kind < (t.a.values_in_keys ? 2 : 3); kind++) {
        const struct place place = places[kind];
        uint8_t saved[4];
        memcpy(saved, place.at, place.bytes);
        put_nan(place);
        fill_out(out);
        attend_part(kernel->with.attend, 0, t.a.n_tokens, 0, t.a.n_heads, out, room);
        kernel->cases++;
        for (size_t at = 0; at < t.n_out; at++) {
            const size_t row = at / t.a.out_stride, within = at % t.a.out_stride;
            const bool of_q = row == token && within / dim == head;
            const bool sees =
                row >= token && within < t.a.n_heads * dim && first_key(t.a.position + row) <= key;
            const bool in_column =
                within % dim >= place.first && within % dim < place.first + place.n;
            if (kind == 0 ? of_q : kind == 1 ? sees : sees && in_column) {
                if (!isnan(out[at]))
                    attend_failed(kernel, " with a NaN", at, NAN, out[at]);
            } else if (!(kind == 2 || t.a.values_in_keys) ||
                       !in_column) { /* 0 times a value that is hidden may be NaN */
                if (memcmp(&out[at], &t.found[at], sizeof *out) != 0)
                    attend_failed(kernel, " beside a NaN", at, t.found[at], out[at]);
            }
        }
        memcpy(place.at, saved, place.bytes);
    }
    free(out);
}

/* One token, its keys in parts by `attend`, added up by `merge`. */
static void attend_in_parts(mmrt_attend_fn *attend, mmrt_attend_merge_fn *merge, size_t keys,
                            float *out, struct guarded room) {
    struct mmrt_attention part = t.a;
    const size_t width = part.n_heads * part.value_dim;
    const uint64_t begin = part.begin, end = part.position + 1;
    const size_t n = (size_t)((end - begin + keys - 1) / keys);
    float *sums = checked(malloc(n * width * sizeof *sums));
    float *weights = checked(malloc(n * part.n_heads * 2 * sizeof *weights));
    part.n_tokens = 1;
    part.scratch = room.end - mmrt_attend_scratch(part.head_dim, part.value_dim);
    for (size_t i = 0; i < n; i++) {
        part.begin = begin + i * keys;
        part.end = part.begin + keys < end ? part.begin + keys : end;
        part.sinks = i ? NULL : t.a.sinks;
        part.out = sums + i * width;
        part.weights = weights + i * part.n_heads * 2;
        attend(&part);
    }
    merge(sums, weights, n, part.n_heads, part.value_dim, out);
    free(sums);
    free(weights);
}

/* Keys in parts come to what they come to at once, but for the rounding. */
static void check_parts(struct kernel *kernel, mmrt_attend_fn *attend, mmrt_attend_merge_fn *merge,
                        struct guarded room) {
    const size_t keys = (1 + random_below(4)) * MMRT_ATTEND_KEYS;
    const size_t width = t.a.n_heads * t.a.value_dim;
    float *out = checked(malloc(width * sizeof *out));
    attend_in_parts(attend, merge, keys, out, room);
    kernel->cases++;
    for (size_t i = 0; i < width; i++)
        if (!(fabsf(out[i] - t.expected[i]) <= attend_bound()))
            attend_failed(kernel, " in parts", i, t.expected[i], out[i]);
    free(out);
}

static void expect(struct guarded room) {
    fill_out(t.expected);
    attend_part(ref->attend, 0, t.a.n_tokens, 0, t.a.n_heads, t.expected, room);
}

static void merge_of(struct kernel *kernel, struct guarded room) {
    expect(room);
    check_parts(kernel, ref->attend, kernel->with.attend_merge, room);
}

static void attention_of(struct kernel *kernel, struct guarded room) {
    expect(room);
    fill_out(t.found);
    attend_part(kernel->with.attend, 0, t.a.n_tokens, 0, t.a.n_heads, t.found, room);
    kernel->cases++;
    for (size_t i = 0; i < t.n_out; i++)
        if (!(fabsf(t.found[i] - t.expected[i]) <= attend_bound()))
            attend_failed(kernel, "", i, t.expected[i], t.found[i]);
    check_parts(kernel, kernel->with.attend, ref->attend_merge, room);
    check_alone(kernel, room);
    check_nan(kernel, room);
}

static void each_attention(struct kernel *kernel, void (*test)(struct kernel *, struct guarded)) {
    static const size_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 192, 256};
    static const uint64_t positions[] = {0, 5, 31, 32, 63, 64, 100, 511, 700};
    static const uint64_t windows[] = {0, 1, 7, 32, 100, 512};
    const struct guarded room = guarded_pages(mmrt_attend_scratch(MAX_DIM, MAX_DIM));
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t p = 0; p < sizeof positions / sizeof *positions; p++)
            for (size_t w = 0; w < sizeof windows / sizeof *windows; w++) {
                if (!case_taken())
                    continue;
                make_attention(dims[d], positions[p], windows[w], (d + p + w) % 2 ? 0 : 50);
                test(kernel, room);
                free_attention();
            }
    guarded_free(room);
}

static void test_attend(struct kernel *kernel) {
    each_attention(kernel, attention_of);
}

static void test_attend_merge(struct kernel *kernel) {
    each_attention(kernel, merge_of);
}
