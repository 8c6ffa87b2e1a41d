/* What a model keeps of sequences: where it lies, who holds it, what is copied and given back, and
 * that each sequence reads what it has written whatever others do that share its pages. */
#define _GNU_SOURCE
#include "state/state.h"
#include "check.h"
#include "stores.h"
#include "texts.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a sequence holds, and others too, in pages. */
static void check_held(const struct text *text, uint64_t pages, uint64_t shared) {
    const uint64_t page = mmrt_state_page_bytes(mmrt_state_store_of(text->state));
    CHECK(mmrt_state_bytes(text->state) == pages * page);
    CHECK(mmrt_state_shared_bytes(text->state) == shared * page);
}

static void check_store(mmrt_state_store *store, uint64_t pages) {
    CHECK(mmrt_state_store_bytes(store) == pages * mmrt_state_page_bytes(store));
}

static uint8_t *page_address(const struct text *text, uint64_t page) {
    return mmrt_state_pages(text->state, 0)[page];
}

/* What all sequences would hold if none shared any, in pages, and the pages copied so far. */
static void check_sharing(mmrt_state_store *store, uint64_t logical, uint64_t copies) {
    mmrt_state_sharing sharing;
    mmrt_state_store_sharing(store, &sharing);
    CHECK(sharing.held == mmrt_state_store_bytes(store));
    CHECK(sharing.logical == logical * mmrt_state_page_bytes(store) && sharing.copies == copies);
}

/* Pages have one number if they are one page. */
static void check_tables(const struct text *a, const struct text *b) {
    mmrt_page_held of_a[MOST_TOKENS], of_b[MOST_TOKENS];
    CHECK(mmrt_state_page_table(a->state, of_a, MOST_TOKENS) == pages_of(a->n));
    CHECK(mmrt_state_page_table(b->state, of_b, MOST_TOKENS) == pages_of(b->n));
    for (uint64_t i = 0; i < pages_of(a->n); i++)
        for (uint64_t j = 0; j < pages_of(b->n); j++) {
            const bool same = of_a[i].number == of_b[j].number;
            CHECK(same == (page_address(a, i) == page_address(b, j)));
            CHECK(!same || of_a[i].holders == of_b[j].holders);
        }
}

/* ---- layouts ---- */

static void test_what_is_refused(void) {
    static const struct {
        mmrt_layer_state layers[2];
        mmrt_status status;
        const char *words;
    } cases[] = {
        {{PAGES(0, 64, 64, 1)}, MMRT_ARGUMENT, "layer 0: 0 key-value heads"},
        {{PAGES(1, 64, 64, 1), PAGES(1, 0, 64, 1)}, MMRT_ARGUMENT, "layer 1: 1 key-value heads"},
        {{PAGES(1, 64, 64, 0)}, MMRT_UNSUPPORTED, "layer 0: keys and values of type F32"},
        {{PAGES(1, 64, 64, 999)}, MMRT_UNSUPPORTED, "of type unknown"},
        {{PAGES(1, UINT32_MAX, 64, 1)}, MMRT_UNSUPPORTED, "do not fit into memory"},
        {{PAGES(1 << 20, 16, 1 << 20, 1)}, MMRT_UNSUPPORTED, "do not fit into memory"},
        {{BLOCK(0)}, MMRT_ARGUMENT, "layer 0: a block of 0 bytes"},
        {{BLOCK(UINT64_MAX)}, MMRT_ARGUMENT, "a block of"},
        {{PAGES(1, 64, 64, 1), {.kind = MMRT_STATE_PAGES_OF_LAYER, .layer = 1}},
         MMRT_ARGUMENT,
         "layer 1: reads the keys of layer 1"},
        {{BLOCK(64), {.kind = MMRT_STATE_PAGES_OF_LAYER}}, MMRT_ARGUMENT, "of layer 0"},
        {{{.kind = 9}}, MMRT_ARGUMENT, "layer 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mmrt_state_store *store = NULL;
        const bool second = cases[i].layers[1].kind != MMRT_STATE_NOTHING;
        CHECK_STATUS(mmrt_state_store_create(cases[i].layers, 1 + second, &store, &error),
                     cases[i].status, &error, cases[i].words);
        CHECK(store == NULL);
    }
}

static void test_room(void) {
    const mmrt_layer_state f16 = PAGES(1, 40, 16, MMRT_TYPE_F16);
    const mmrt_layer_state q8_0 = PAGES(1, 40, 33, MMRT_TYPE_Q8_0);
    mmrt_layer_state both = f16;
    both.v_type = MMRT_TYPE_Q8_0;
    CHECK(mmrt_key_room(&f16) == 48 && mmrt_value_room(&f16) == 16);
    CHECK(mmrt_key_room(&q8_0) == 64 && mmrt_value_room(&q8_0) == 64);
    CHECK(mmrt_key_room(&both) == 64 && mmrt_value_room(&both) == 32);
}

static void test_pages_of_a_head_follow_one_another(void) {
    mmrt_state_store *store = STORE(alike);
    struct text text = new_text(store);
    const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, 1);
    CHECK(mmrt_state_page_bytes(store) == 2 * 2 * 2 * 64 * 2 * 32 &&
          !mmrt_state_layer_at(store, 2));
    CHECK(layer->page_bytes == 8192 && layer->head_bytes == 65536 && layer->key_bytes == 4096);
    CHECK(layer->table == 0 && layer->offset == 2 * 65536);
    extend(&text, 20 * 32, 1);
    for (uint64_t i = 0; i < 20; i++)
        CHECK(i % 8 == 0 || page_address(&text, i) == page_address(&text, i - 1) + 8192);
    check_held(&text, 20, 0);
    end_text(&text);
    end_store(store);
}

/* Nothing of one layer, head, token or page lies where another's does. */
static void test_layers_that_are_unlike(void) {
    mmrt_state_store *store = STORE(unlike);
    struct text text = new_text(store);
    CHECK(mmrt_state_layer_at(store, 3)->offset == mmrt_state_layer_at(store, 0)->offset);
    CHECK(mmrt_state_layer_at(store, 3)->spec.window == 7);
    for (uint32_t n = 1; text.n + n < MOST_TOKENS; n += 7)
        extend(&text, n, n);
    check_text(&text);
    end_text(&text);
    end_store(store);
}

/* ---- growing and going back ---- */

static void test_it_grows_and_goes_back_by_pages(void) {
    mmrt_state_store *store = STORE(unlike);
    struct text text = new_text(store);
    const uint64_t page = mmrt_state_page_bytes(store);
    check_held(&text, 0, 0);
    for (uint64_t n = 1; n < 300; n += 13) {
        const uint64_t growth = (pages_of(n) - pages_of(text.n)) * page;
        CHECK(mmrt_state_growth(text.state, n, false) == growth);
        extend(&text, n - text.n, 5);
        check_held(&text, pages_of(n), 0);
        CHECK(mmrt_state_growth(text.state, n, false) == 0);
        fail_to_extend(&text, 100, 6);
        check_held(&text, pages_of(n), 0);
    }
    CHECK(mmrt_state_rewind(text.state, 1000) == text.n);
    for (uint64_t n = text.n; n > 31; n -= 31) {
        rewind_text(&text, n);
        CHECK(text.n == n);
        check_text(&text);
        check_held(&text, pages_of(n), 0);
        check_store(store, pages_of(n));
    }
    rewind_text(&text, 0);
    check_held(&text, 0, 0);
    end_text(&text);
    end_store(store);
}

/* Of pages first to end - 1 of an extent: how many pages of the system are in memory. */
static size_t resident(const mmrt_state_store *store, uint8_t *first_page, size_t first,
                       size_t end) {
    const size_t system_page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n = 0;
    for (uint32_t l = 0; l < mmrt_state_n_layers(store); l++) {
        const struct mmrt_state_layer *layer = mmrt_state_layer_at(store, l);
        const size_t bytes = (end - first) * layer->page_bytes;
        unsigned char *flags = malloc(bytes / system_page + 1);
        for (uint32_t head = 0; head < layer->spec.n_heads; head++) {
            uint8_t *at = first_page + mmrt_state_keys_at(layer, head) + first * layer->page_bytes;
            CHECK(mincore(at, bytes, flags) == 0);
            for (size_t i = 0; i < bytes / system_page; i++)
                n += flags[i] & 1;
        }
        free(flags);
    }
    return n;
}

static void test_memory_is_taken_as_written_and_given_back(void) {
    mmrt_state_store *store = STORE(alike);
    const size_t whole = mmrt_state_page_bytes(store) / (size_t)sysconf(_SC_PAGESIZE);
    struct text text = new_text(store);
    extend(&text, 32, 1);
    uint8_t *first = page_address(&text, 0);
    CHECK(resident(store, first, 0, 1) == whole && resident(store, first, 1, 8) == 0);
    extend(&text, 7 * 32, 1);
    CHECK(resident(store, first, 0, 8) == 8 * whole);
    rewind_text(&text, 2 * 32 + 1);
    CHECK(resident(store, first, 0, 3) == 3 * whole && resident(store, first, 3, 8) == 0);

    /* Pages that a fork holds stay; those that it does not hold go. */
    struct text other = fork_text(&text);
    extend(&text, 4 * 32, 2);
    check_text(&other);
    CHECK(page_address(&text, 3) == first + 4 * 8192); /* behind the copy of page 2 */
    rewind_text(&text, 0);
    CHECK(resident(store, first, 0, 3) == 3 * whole && resident(store, first, 3, 8) == 0);
    end_text(&text);
    check_text(&other);
    check_held(&other, 3, 0);
    end_text(&other);
    CHECK(mincore(first, 1, &(unsigned char){0}) != 0); /* nothing is mapped there */
    end_store(store);
}

/* ---- forks ---- */

static void test_a_fork_copies_one_page_when_it_is_written(void) {
    mmrt_state_store *store = STORE(unlike);
    const uint64_t page = mmrt_state_page_bytes(store);
    struct text parent = new_text(store);
    extend(&parent, 100, 1);
    struct text child = fork_text(&parent), grandchild = fork_text(&child);
    check_store(store, 4);
    check_held(&parent, 4, 4);
    check_held(&grandchild, 4, 4);
    CHECK(page_address(&parent, 3) == page_address(&grandchild, 3));
    CHECK(mmrt_state_growth(child.state, 101, false) == page);
    CHECK(mmrt_state_growth(child.state, 100 + 32, false) == 2 * page);

    check_sharing(store, 12, 0);
    extend(&child, 1, 2); /* two of the three copy the last page */
    check_sharing(store, 12, 1);
    check_tables(&child, &grandchild);
    check_store(store, 5);
    check_held(&child, 4, 3);
    check_held(&parent, 4, 4);
    extend(&parent, 1, 3);
    check_store(store, 6);
    CHECK(mmrt_state_growth(grandchild.state, 101, false) == 0);
    extend(&grandchild, 1, 4);
    check_store(store, 6);
    check_held(&grandchild, 4, 3);
    check_text(&parent);
    check_text(&child);
    check_text(&grandchild);

    end_text(&parent);
    check_text(&child);
    extend(&child, 200, 5);
    rewind_text(&child, 70); /* into a page that the grandchild has too */
    extend(&child, 20, 6);
    check_text(&child);
    check_text(&grandchild);
    check_held(&child, 3, 2);
    end_text(&child);
    check_text(&grandchild);
    check_held(&grandchild, 4, 0);
    check_store(store, 4);
    end_text(&grandchild);
    end_store(store);
}

static void test_full_pages_are_never_copied(void) {
    mmrt_state_store *store = STORE(alike);
    struct text parent = new_text(store), child;
    extend(&parent, 64, 1);
    child = fork_text(&parent);
    extend(&child, 1, 2);
    extend(&parent, 1, 3);
    check_store(store, 4);
    check_held(&child, 3, 2);
    struct text empty = new_text(store), copy = fork_text(&empty);
    CHECK(copy.n == 0 && mmrt_state_bytes(copy.state) == 0);
    extend(&copy, 3, 4);
    check_text(&copy);
    check_text(&parent);
    check_text(&child);
    end_text(&empty);
    end_text(&copy);
    end_text(&child);
    end_text(&parent);
    end_store(store);
}

static void test_an_abandoned_step_of_a_fork(void) {
    mmrt_state_store *store = STORE(unlike);
    struct text parent = new_text(store);
    extend(&parent, 40, 1);
    struct text child = fork_text(&parent);
    fail_to_extend(&child, 300, 2);
    fail_to_extend(&parent, 300, 3);
    check_text(&parent);
    check_text(&child);
    check_held(&child, 2, 1);
    check_store(store, 3); /* the copied page stays copied */
    end_text(&child);
    end_text(&parent);
    end_store(store);
}

/* The free pages of an extent are for the sequence that goes on there; where none does, for any. */
static void test_free_pages_are_used_again(void) {
    mmrt_state_store *store = STORE(alike);
    struct text parent = new_text(store), other = new_text(store);
    extend(&parent, 3 * 32, 1);
    struct text child = fork_text(&parent);
    uint8_t *const free_page = page_address(&parent, 2) + 8192;
    extend(&other, 1, 2);
    CHECK(page_address(&other, 0) != free_page);
    extend(&parent, 1, 3);
    CHECK(page_address(&parent, 3) == free_page);
    end_text(&parent);
    for (int i = 0; i < 50; i++) {
        struct text fresh = new_text(store);
        extend(&fresh, 33, 4);
        CHECK(page_address(&fresh, 0) == free_page);
        CHECK(page_address(&fresh, 1) == free_page + 8192);
        end_text(&fresh);
    }
    struct text branch = fork_text(&other);
    end_text(&other);
    extend(&child, 1, 5); /* there is another extent too, but here its pages are */
    CHECK(page_address(&child, 3) == free_page);
    check_text(&child);
    check_text(&branch);
    end_text(&child);
    end_text(&branch);
    end_store(store);
}

enum { N_TEXTS = 9, N_ACTIONS = 1000 };

/* Distinct pages that the texts hold; *shared: of one of them, those that another holds too. */
static uint64_t count_pages(struct text *texts, int which, uint64_t *shared) {
    static const uint8_t *seen[N_TEXTS * MOST_TOKENS];
    uint64_t n = 0;
    *shared = 0;
    for (int t = 0; t < N_TEXTS; t++)
        for (uint64_t i = 0; texts[t].state && i < pages_of(texts[t].n); i++) {
            uint64_t at = 0;
            while (at < n && seen[at] != page_address(&texts[t], i))
                at++;
            seen[at] = page_address(&texts[t], i);
            n += at == n;
            bool others = false;
            for (int o = 0; t == which && o < N_TEXTS; o++)
                for (uint64_t j = 0; o != t && texts[o].state && j < pages_of(texts[o].n); j++)
                    others |= seen[at] == page_address(&texts[o], j);
            *shared += others;
        }
    return n;
}

/* Any order of calls: each sequence is what it would be alone, and what is held is what is counted.
 */
static void test_any_order_of_calls(mmrt_state_store *store) {
    struct text texts[N_TEXTS] = {0};
    uint32_t random = 7;
    for (int action = 0; action < N_ACTIONS; action++) {
        random = random * 1664525u + 1013904223u;
        struct text *text = &texts[(random >> 8) % N_TEXTS];
        const uint32_t number = random >> 16, n = 1 + number % 70;
        const bool fits = text->n + n < MOST_TOKENS;
        if (!text->state) {
            const struct text *from = &texts[number % N_TEXTS];
            *text = from->state && number % 5 ? fork_text(from) : new_text(store);
        } else if (random >> 28 < 7 && fits)
            extend(text, n, random);
        else if (random >> 28 < 9 && fits)
            fail_to_extend(text, n, random);
        else if (random >> 28 < 13)
            rewind_text(text, text->n ? number % (text->n + 1) : 0);
        else
            end_text(text);
        const int which = (int)(text - texts);
        if (text->state && texts[number % N_TEXTS].state)
            check_tables(text, &texts[number % N_TEXTS]);
        uint64_t shared, pages = count_pages(texts, which, &shared);
        check_store(store, pages);
        if (text->state)
            check_held(text, pages_of(text->n), shared);
        for (int t = 0; t < N_TEXTS; t++)
            if (texts[t].state && (t == which || action % 8 == 0))
                check_text(&texts[t]);
    }
    for (int t = 0; t < N_TEXTS; t++)
        end_text(&texts[t]);
    end_store(store);
}

/* ---- blocks ---- */

static void check_block(const struct text *text) {
    struct text copy = *text; /* whose next step looks at the block */
    fail_to_extend(&copy, 1, 1);
    check_text(text);
}

static void test_blocks(mmrt_state_store *store, uint64_t block_bytes) {
    const uint64_t page = mmrt_state_page_bytes(store);
    struct text text = new_text(store);
    fail_to_extend(&text, 5, 1);
    CHECK(mmrt_state_bytes(text.state) == 0);
    CHECK(mmrt_state_growth(text.state, 40, false) == 2 * block_bytes + 2 * page);
    extend(&text, 40, 1);
    CHECK(mmrt_state_bytes(text.state) == 2 * block_bytes + 2 * page);
    for (int i = 0; i < 5; i++) {
        fail_to_extend(&text, 3, 2);
        extend(&text, 1, 3);
    }
    rewind_text(&text, 45);
    CHECK(text.n == 45);
    check_block(&text);

    struct text child = fork_text(&text);
    CHECK(mmrt_state_store_bytes(store) == 2 * block_bytes + 2 * page);
    CHECK(mmrt_state_shared_bytes(child.state) == block_bytes + 2 * page);
    mmrt_state_sharing sharing;
    mmrt_state_store_sharing(store, &sharing);
    CHECK(sharing.logical == 3 * block_bytes + 4 * page); /* the child has no next block yet */
    extend(&child, 1, 4);
    check_block(&text);
    CHECK(mmrt_state_store_bytes(store) == 3 * block_bytes + 3 * page);
    extend(&text, 2, 5);
    extend(&child, 1, 6);
    check_block(&child);
    check_block(&text);
    end_text(&text);
    extend(&child, 1, 7);

    rewind_text(&child, 40); /* a block cannot be undone */
    CHECK(child.n == 0 && mmrt_state_bytes(child.state) == 0);
    extend(&child, 1, 8);
    check_block(&child);
    end_text(&child);
    end_store(store);
}

/* ---- memory that ends ---- */

static void test_no_memory_leaves_it_as_it_was(void) {
    static const mmrt_layer_state huge[] = {PAGES(1 << 10, 1 << 29, 16, MMRT_TYPE_F16)};
    mmrt_state_store *store = STORE(huge);
    mmrt_state *state = NULL;
    CHECK(mmrt_state_create(store, &state, &error) == MMRT_OK);
    CHECK_STATUS(mmrt_state_reserve(state, 1, &error), MMRT_NO_MEMORY, &error,
                 "no memory for keys and values");
    CHECK(mmrt_state_length(state) == 0 && mmrt_state_bytes(state) == 0);
    mmrt_state_free(state);
    end_store(store);
}

/* A store lives as long as what uses it. */
static void test_a_store_that_is_let_go_of(void) {
    mmrt_state_store *store = STORE(alike);
    struct text text = new_text(store), other = new_text(store);
    mmrt_state_store_free(store);
    extend(&text, 50, 1);
    end_text(&other);
    check_text(&text);
    end_text(&text);
    mmrt_state_free(NULL);
    mmrt_state_store_free(NULL);
}

/* ---- several threads, and children of a fork meanwhile ---- */

enum { N_THREADS = 3, ROUNDS = 40 };

struct shared {
    mmrt_state_store *store;
    struct text prefix;
    atomic_int n_working;
};

static void go_on(const struct text *prefix, uint32_t seed) {
    struct text text = fork_text(prefix);
    extend(&text, 40, seed);
    struct text other = fork_text(&text);
    extend(&other, 30, seed + 1);
    extend(&text, 1, seed + 2);
    rewind_text(&text, prefix->n - 3);
    extend(&text, 2, seed + 3);
    check_text(&text);
    end_text(&text);
    check_text(&other);
    end_text(&other);
}

static void *work(void *context) {
    struct shared *shared = context;
    for (uint32_t i = 0; i < ROUNDS; i++)
        go_on(&shared->prefix, i);
    shared->n_working--;
    return NULL;
}

static void *ask(void *context) {
    struct shared *shared = context;
    while (shared->n_working) {
        const mmrt_state *state = shared->prefix.state;
        CHECK(mmrt_state_length(state) == 77 && mmrt_state_growth(state, 100, false) > 0);
        CHECK(mmrt_state_shared_bytes(state) <= mmrt_state_bytes(state));
        CHECK(mmrt_state_bytes(state) <= mmrt_state_store_bytes(shared->store));
    }
    return NULL;
}

/* Children find the store and what they know of it whole, and can use it. */
static void fork_children(struct shared *shared) {
#ifndef WITHOUT_FORKS
    while (shared->n_working) {
        int status = 1;
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            check_failures = 0;
            check_text(&shared->prefix);
            go_on(&shared->prefix, 9);
            end_text(&shared->prefix);
            _exit(check_failures != 0);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
#else
    (void)shared;
#endif
}

static void test_threads(mmrt_state_store *store) {
    struct shared shared = {.store = store, .prefix = new_text(store), .n_working = N_THREADS};
    pthread_t threads[N_THREADS + 1];
    extend(&shared.prefix, 77, 1);
    for (int i = 0; i <= N_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, i < N_THREADS ? work : ask, &shared) == 0);
    fork_children(&shared);
    for (int i = 0; i <= N_THREADS; i++)
        pthread_join(threads[i], NULL);
    check_text(&shared.prefix);
    end_text(&shared.prefix);
    end_store(store);
}

int main(void) {
    test_what_is_refused();
    test_room();
    test_pages_of_a_head_follow_one_another();
    test_layers_that_are_unlike();
    test_it_grows_and_goes_back_by_pages();
    test_memory_is_taken_as_written_and_given_back();
    test_a_fork_copies_one_page_when_it_is_written();
    test_full_pages_are_never_copied();
    test_an_abandoned_step_of_a_fork();
    test_free_pages_are_used_again();
    test_any_order_of_calls(STORE(alike));
    test_any_order_of_calls(STORE(unlike));
    test_blocks(STORE(with_blocks), 128 + 5056);
    test_blocks(STORE(only_a_block), 64);
    test_no_memory_leaves_it_as_it_was();
    test_a_store_that_is_let_go_of();
    test_threads(STORE(unlike));
    test_threads(STORE(with_blocks));
    return check_result();
}
