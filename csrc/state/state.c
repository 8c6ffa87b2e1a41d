/* A sequence: its length, a table of pages, a block, and checkpoints. All under the store's lock,
 * but for the length, which is read without it. */
#include "state/store.h"

#include "base/status.h"
#include "state/checkpoints.h"
#include "state/page.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct mmrt_state {
    mmrt_state_store *store;
    _Atomic uint64_t length;
    uint64_t n_pages;
    uint64_t room;            /* of the tables */
    struct mmrt_page *pages;  /* [room] */
    uint8_t **addresses;      /* [n_tables][room] */
    struct mmrt_extent *open; /* where it goes on: see mmrt_extent_claim */
    struct mmrt_block *block; /* of the tokens read; NULL: none yet */
    struct mmrt_block *next;  /* to be filled by a step; NULL: none yet */
    bool writes_next;         /* a step does */
    bool keeps_block;         /* the block becomes a checkpoint when the sequence goes on */
    struct mmrt_checkpoints checkpoints; /* of fewer tokens; with room for those of a step */
    struct mmrt_block *each[MMRT_EXACT_TOKENS - 1]; /* after a step's tokens, but for the last */
    uint32_t n_each;                                /* that there are */
    uint32_t fills;                                 /* of these, so many are a step's */
};

static uint64_t pages_for(const mmrt_state *state, uint64_t length) {
    return state->store->n_tables ? (length + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS : 0;
}

mmrt_status mmrt_state_create(mmrt_state_store *store, mmrt_state **out, mmrt_error *err) {
    mmrt_state *state = calloc(1, sizeof *state);
    if (!state)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a sequence");
    state->store = mmrt_state_store_use(store);
    *out = state;
    return MMRT_OK;
}

void mmrt_state_free(mmrt_state *state) {
    if (!state)
        return;
    mmrt_state_rewind(state, 0);
    mmrt_state_store_free(state->store);
    free(state->pages);
    free(state->addresses);
    free(state->checkpoints.at);
    free(state);
}

/* ---- what it is ---- */

mmrt_state_store *mmrt_state_store_of(const mmrt_state *state) {
    return state->store;
}

uint64_t mmrt_state_length(const mmrt_state *state) {
    return state->length;
}

uint8_t *const *mmrt_state_pages(const mmrt_state *state, uint32_t table) {
    return state->addresses + table * state->room;
}

const uint8_t *mmrt_state_block(const mmrt_state *state) {
    return state->block->bytes;
}

uint8_t *mmrt_state_next_block(const mmrt_state *state) {
    return state->next->bytes;
}

uint8_t *mmrt_state_block_after(const mmrt_state *state, uint64_t length) {
    const uint64_t i = length - state->length - 1;
    return i < state->fills ? state->each[i]->bytes : state->next->bytes;
}

static uint64_t mapped_pages(const mmrt_state *state) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < state->n_pages; i++)
        n += state->pages[i].extent->file != NULL;
    return n;
}

uint64_t mmrt_state_bytes(const mmrt_state *state) {
    mmrt_state_lock();
    const uint64_t n_blocks = (uint64_t)(state->block != NULL) + (state->next != NULL) +
                              state->checkpoints.n + state->n_each;
    const uint64_t n_pages = state->n_pages - mapped_pages(state);
    const uint64_t bytes =
        n_pages * state->store->page_bytes + n_blocks * state->store->block_bytes;
    mmrt_state_unlock();
    return bytes;
}

uint64_t mmrt_state_mapped_bytes(const mmrt_state *state) {
    mmrt_state_lock();
    const uint64_t bytes = mapped_pages(state) * state->store->page_bytes;
    mmrt_state_unlock();
    return bytes;
}

static bool is_shared(struct mmrt_page page) {
    return page.extent->holders[page.slot] > 1;
}

uint64_t mmrt_state_shared_bytes(const mmrt_state *state) {
    mmrt_state_lock();
    uint64_t n_pages = 0;
    for (uint64_t i = 0; i < state->n_pages; i++)
        n_pages += is_shared(state->pages[i]) && !state->pages[i].extent->file;
    uint64_t n_blocks = state->block && state->block->holders > 1;
    for (uint64_t i = 0; i < state->checkpoints.n; i++)
        n_blocks += state->checkpoints.at[i].block->holders > 1;
    mmrt_state_unlock();
    return n_pages * state->store->page_bytes + n_blocks * state->store->block_bytes;
}

uint64_t mmrt_state_page_table(const mmrt_state *state, mmrt_page_held *pages, uint64_t most) {
    mmrt_state_lock();
    for (uint64_t i = 0; i < state->n_pages && i < most; i++) {
        const struct mmrt_page page = state->pages[i];
        pages[i].number = page.extent->number * MMRT_EXTENT_PAGES + page.slot;
        pages[i].holders = page.extent->holders[page.slot];
    }
    const uint64_t n_pages = state->n_pages;
    mmrt_state_unlock();
    return n_pages;
}

/* Whether the page that the next token belongs to is held, and by another sequence or a file too.
 */
static bool must_copy(const mmrt_state *state) {
    const uint64_t last = state->length / MMRT_PAGE_KEYS;
    return state->length % MMRT_PAGE_KEYS && last < state->n_pages &&
           (is_shared(state->pages[last]) || state->pages[last].extent->file);
}

uint64_t mmrt_state_growth(const mmrt_state *state, uint64_t length, bool each) {
    mmrt_state_lock();
    const mmrt_state_store *store = state->store;
    const uint64_t wanted = pages_for(state, length);
    uint64_t n_pages = wanted > state->n_pages ? wanted - state->n_pages : 0, n_blocks = 0;
    if (length > state->length) {
        n_pages += must_copy(state);
        n_blocks = (uint64_t)!state->block + !state->next;
        uint64_t there = state->n_each + 1;
        for (uint64_t i = 0; i < state->checkpoints.n; i++)
            there += state->checkpoints.at[i].brief;
        if (each && length - state->length > there)
            n_blocks += length - state->length - there;
    }
    mmrt_state_unlock();
    return n_pages * store->page_bytes + n_blocks * store->block_bytes;
}

/* ---- a step ---- */

static void set_page(mmrt_state *state, uint64_t i, struct mmrt_page page) {
    state->pages[i] = page;
    for (uint32_t table = 0; table < state->store->n_tables; table++)
        state->addresses[table * state->room + i] = mmrt_page_address(state->store, page, table);
}

static mmrt_status grow_tables(mmrt_state *state, uint64_t wanted, mmrt_error *err) {
    if (wanted <= state->room)
        return MMRT_OK;
    const uint64_t room = wanted + wanted / 2 + MMRT_EXTENT_PAGES;
    const uint32_t n_tables = state->store->n_tables;
    struct mmrt_page *pages = malloc(room * sizeof *pages);
    uint8_t **addresses = malloc(room * n_tables * sizeof *addresses);
    if (!pages || !addresses) {
        free(pages);
        free(addresses);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a table of %llu pages of keys",
                         (unsigned long long)room);
    }
    if (state->n_pages)
        memcpy(pages, state->pages, state->n_pages * sizeof *pages);
    for (uint32_t table = 0; state->n_pages && table < n_tables; table++)
        memcpy(addresses + table * room, state->addresses + table * state->room,
               state->n_pages * sizeof *addresses);
    free(state->pages);
    free(state->addresses);
    state->pages = pages;
    state->addresses = addresses;
    state->room = room;
    return MMRT_OK;
}

/* Brief checkpoints are none any more, and their blocks serve again. */
static void end_brief_ones(mmrt_state *state) {
    struct mmrt_checkpoints *list = &state->checkpoints;
    for (uint64_t i = list->n; i--;) {
        if (!list->at[i].brief)
            continue;
        if (state->n_each < MMRT_EXACT_TOKENS - 1) {
            state->each[state->n_each++] = list->at[i].block;
            list->at[i].block = NULL;
        }
        mmrt_checkpoints_remove(state->store, list, i);
    }
}

static mmrt_status take_blocks(mmrt_state *state, mmrt_error *err) {
    end_brief_ones(state);
    mmrt_status status = MMRT_OK;
    if (!state->block)
        status = mmrt_block_take(state->store, &state->block, err);
    if (!status && !state->next)
        status = mmrt_block_take(state->store, &state->next, err);
    state->writes_next = !status;
    return status;
}

static mmrt_status take_pages(mmrt_state *state, uint64_t wanted, mmrt_error *err) {
    const uint64_t last = state->length / MMRT_PAGE_KEYS;
    struct mmrt_page page, copy = {NULL, 0};
    mmrt_status status = MMRT_OK;
    if (!state->open && state->n_pages)
        mmrt_extent_claim(state->store, &state->open, state->pages[state->n_pages - 1].extent);
    if (must_copy(state))
        status = mmrt_page_take(state->store, &state->open, &copy, err);
    while (!status && state->n_pages < wanted) {
        status = mmrt_page_take(state->store, &state->open, &page, err);
        if (!status)
            set_page(state, state->n_pages++, page);
    }
    if (!copy.extent)
        return status;
    if (!status)
        status = mmrt_page_copy(state->store, copy, state->pages[last], err);
    if (!status) {
        const struct mmrt_page shared = state->pages[last];
        set_page(state, last, copy);
        copy = shared;
    }
    mmrt_pages_drop(state->store, &copy, 1);
    return status;
}

/* Blocks that are there for further steps. */
static void drop_spare(mmrt_state *state) {
    mmrt_block_drop(state->store, &state->next);
    while (state->n_each)
        mmrt_block_drop(state->store, &state->each[--state->n_each]);
}

/* To the last checkpoint of `length` tokens at most, or else to nothing; returns how many. */
static uint64_t go_back(mmrt_state *state, uint64_t length) {
    struct mmrt_checkpoints *list = &state->checkpoints;
    mmrt_checkpoints_cut(state->store, list, mmrt_checkpoints_up_to(list, length));
    mmrt_block_drop(state->store, &state->block);
    state->keeps_block = list->n > 0;
    if (!list->n)
        return 0;
    const struct mmrt_checkpoint last = list->at[--list->n];
    state->block = last.block;
    state->keeps_block = !last.brief;
    return last.length;
}

/* Under the lock; returns the length. */
static uint64_t rewind_to(mmrt_state *state, uint64_t length) {
    if (length > state->length)
        length = state->length;
    if (length < state->length && state->store->block_bytes)
        length = go_back(state, length);
    state->length = length;
    const uint64_t before = state->n_pages, kept = pages_for(state, length);
    state->n_pages = kept;
    mmrt_extent_claim(state->store, &state->open, kept ? state->pages[kept - 1].extent : NULL);
    mmrt_pages_drop(state->store, state->pages + kept, before - kept);
    state->writes_next = false;
    state->fills = 0;
    if (!length) {
        mmrt_block_drop(state->store, &state->block);
        drop_spare(state);
    }
    return length;
}

mmrt_status mmrt_state_reserve(mmrt_state *state, uint64_t length, mmrt_error *err) {
    if (length <= state->length)
        return MMRT_OK;
    mmrt_state_lock();
    const uint64_t wanted = pages_for(state, length);
    const bool had_next = state->next != NULL;
    mmrt_status status = grow_tables(state, wanted, err);
    if (!status && state->store->block_bytes && state->length && !state->block)
        status = mmrt_fail(err, MMRT_ARGUMENT, "the state after %llu tokens is not there",
                           (unsigned long long)state->length);
    if (!status && state->store->block_bytes)
        status = take_blocks(state, err);
    if (!status)
        status = take_pages(state, wanted, err);
    if (status) {
        rewind_to(state, state->length);
        if (!had_next)
            mmrt_block_drop(state->store, &state->next);
    }
    mmrt_state_unlock();
    return status;
}

/* The blocks after each token of a step are checkpoints, for a while. */
static void keep_each(mmrt_state *state) {
    for (uint32_t i = 0; i < state->fills; i++)
        mmrt_checkpoints_add(&state->checkpoints,
                             (struct mmrt_checkpoint){state->length + 1 + i, state->each[i], true});
    state->n_each -= state->fills;
    memmove(state->each, state->each + state->fills, state->n_each * sizeof *state->each);
    state->fills = 0;
}

/* The block that a step has filled is the sequence's. */
static void turn_over(mmrt_state *state) {
    struct mmrt_block *before = state->block;
    state->writes_next = false;
    state->block = state->next;
    state->next = NULL;
    if (state->keeps_block)
        mmrt_checkpoints_add(&state->checkpoints,
                             (struct mmrt_checkpoint){state->length, before, false});
    else if (before->holders > 1)
        mmrt_block_drop(state->store, &before);
    else
        state->next = before;
    state->keeps_block = false;
}

mmrt_status mmrt_state_reserve_each(mmrt_state *state, uint64_t length, mmrt_error *err) {
    mmrt_state_lock();
    mmrt_status status = mmrt_checkpoints_make_room(&state->checkpoints, MMRT_EXACT_TOKENS, err);
    const uint64_t n = state->store->block_bytes ? length - state->length - 1 : 0;
    if (!status && n > MMRT_EXACT_TOKENS - 1)
        status = mmrt_fail(err, MMRT_ARGUMENT, "the state after each of %llu tokens", n + 1ull);
    while (!status && state->n_each < n) {
        status = mmrt_block_take(state->store, &state->each[state->n_each], err);
        state->n_each += !status;
    }
    state->fills = status ? 0 : (uint32_t)n;
    mmrt_state_unlock();
    return status;
}

void mmrt_state_commit(mmrt_state *state, uint64_t length) {
    mmrt_state_lock();
    if (state->writes_next)
        turn_over(state);
    keep_each(state);
    state->length = length;
    mmrt_state_unlock();
}

void mmrt_state_abandon(mmrt_state *state) {
    mmrt_state_rewind(state, state->length);
}

/* The sequence goes on after `block`. */
static void replace_block(mmrt_state *state, struct mmrt_block *block) {
    if (state->keeps_block)
        mmrt_checkpoints_add(&state->checkpoints,
                             (struct mmrt_checkpoint){state->length, state->block, false});
    else
        mmrt_block_drop(state->store, &state->block);
    state->keeps_block = false;
    state->block = block;
}

mmrt_status mmrt_state_append(mmrt_state *state, mmrt_mapping *file, uint64_t n,
                              struct mmrt_block *block, mmrt_error *err) {
    const uint32_t n_pages = (uint32_t)((n + MMRT_PAGE_KEYS - 1) / MMRT_PAGE_KEYS);
    struct mmrt_extent *extent = NULL;
    mmrt_state_lock();
    mmrt_status status = grow_tables(state, state->n_pages + n_pages, err);
    if (!status)
        status = mmrt_extent_of_file(state->store, file, n_pages, &extent, err);
    for (uint32_t slot = 0; !status && slot < n_pages; slot++)
        set_page(state, state->n_pages++, (struct mmrt_page){extent, slot});
    if (!status && state->store->block_bytes)
        replace_block(state, block);
    if (!status)
        state->length += n;
    mmrt_state_unlock();
    return status;
}

mmrt_status mmrt_state_check(const mmrt_state *state, mmrt_error *err) {
    mmrt_mapping *last = NULL;
    mmrt_status status = MMRT_OK;
    for (uint64_t i = 0; !status && i < state->n_pages; i++) {
        mmrt_mapping *file = state->pages[i].extent->file;
        if (file && file != last)
            status = mmrt_mapping_check(file, 0, 0, NULL, err);
        last = file;
    }
    return status;
}

uint64_t mmrt_state_rewind(mmrt_state *state, uint64_t length) {
    mmrt_state_lock();
    const uint64_t reached = rewind_to(state, length);
    mmrt_state_unlock();
    return reached;
}

void mmrt_state_trim(mmrt_state *state) {
    mmrt_state_lock();
    end_brief_ones(state);
    drop_spare(state);
    mmrt_state_unlock();
}

/* ---- checkpoints ---- */

uint64_t mmrt_state_reach(const mmrt_state *state, uint64_t length) {
    mmrt_state_lock();
    const struct mmrt_checkpoints *list = &state->checkpoints;
    if (length > state->length)
        length = state->length;
    if (length < state->length && state->store->block_bytes) {
        const uint64_t n = mmrt_checkpoints_up_to(list, length);
        length = n ? list->at[n - 1].length : 0;
    }
    mmrt_state_unlock();
    return length;
}

const uint8_t *mmrt_state_block_at(const mmrt_state *state, uint64_t length) {
    mmrt_state_lock();
    const struct mmrt_checkpoints *list = &state->checkpoints;
    const uint64_t n = mmrt_checkpoints_up_to(list, length);
    const struct mmrt_block *block = NULL;
    if (length == state->length)
        block = state->block;
    else if (n && list->at[n - 1].length == length)
        block = list->at[n - 1].block;
    mmrt_state_unlock();
    return block ? block->bytes : NULL;
}

static mmrt_status keep_block(mmrt_state *state, mmrt_error *err) {
    mmrt_status status = MMRT_OK;
    if (state->block && state->length && !state->keeps_block) {
        status = mmrt_checkpoints_make_room(&state->checkpoints, MMRT_EXACT_TOKENS, err);
        state->keeps_block = !status;
    }
    return status;
}

mmrt_status mmrt_state_checkpoint(mmrt_state *state, mmrt_error *err) {
    mmrt_state_lock();
    mmrt_status status = keep_block(state, err);
    mmrt_state_unlock();
    return status;
}

uint64_t mmrt_state_checkpoints(const mmrt_state *state, uint64_t *lengths, uint64_t most) {
    mmrt_state_lock();
    const struct mmrt_checkpoints *list = &state->checkpoints;
    uint64_t n = 0;
    for (uint64_t i = 0; i < list->n; i++)
        if (!list->at[i].brief && n++ < most)
            lengths[n - 1] = list->at[i].length;
    if (state->keeps_block && n++ < most)
        lengths[n - 1] = state->length;
    mmrt_state_unlock();
    return n;
}

void mmrt_state_forget(mmrt_state *state, uint64_t length) {
    mmrt_state_lock();
    struct mmrt_checkpoints *list = &state->checkpoints;
    const uint64_t n = mmrt_checkpoints_up_to(list, length);
    if (length == state->length)
        state->keeps_block = false;
    else if (n && list->at[n - 1].length == length)
        mmrt_checkpoints_remove(state->store, list, n - 1);
    mmrt_state_unlock();
}

/* Holds a block too that another sequence of the same tokens has after `length` of them. */
static mmrt_status adopt_one(mmrt_state *to, uint64_t length, struct mmrt_block *block,
                             mmrt_error *err) {
    struct mmrt_checkpoints *list = &to->checkpoints;
    const uint64_t n = mmrt_checkpoints_up_to(list, length);
    if (length == to->length)
        return keep_block(to, err);
    if (!block || length > to->length || (n && list->at[n - 1].length == length))
        return MMRT_OK;
    mmrt_status status = mmrt_checkpoints_make_room(list, MMRT_EXACT_TOKENS, err);
    if (status)
        return status;
    mmrt_block_hold(to->store, block);
    mmrt_checkpoints_add(list, (struct mmrt_checkpoint){length, block, false});
    return mmrt_checkpoints_make_room(list, MMRT_EXACT_TOKENS, err);
}

/* All that `from` can go back to; its end, if it is to be kept or `to` is longer. */
static mmrt_status adopt(mmrt_state *to, const mmrt_state *from, mmrt_error *err) {
    const struct mmrt_checkpoints *list = &from->checkpoints;
    mmrt_status status = MMRT_OK;
    for (uint64_t i = 0; !status && i < list->n; i++)
        if (!list->at[i].brief)
            status = adopt_one(to, list->at[i].length, list->at[i].block, err);
    if (!status && (from->keeps_block || from->length < to->length))
        status = adopt_one(to, from->length, from->block, err);
    return status;
}

mmrt_status mmrt_state_adopt(mmrt_state *state, const mmrt_state *other, mmrt_error *err) {
    if (state->store != other->store)
        return mmrt_fail(err, MMRT_ARGUMENT, "the sequences belong to different models");
    mmrt_state_lock();
    mmrt_status status = adopt(state, other, err);
    mmrt_state_unlock();
    return status;
}

/* ---- fork ---- */

static mmrt_status copy_tables(mmrt_state *to, const mmrt_state *from, mmrt_error *err) {
    const uint64_t n_pages = pages_for(from, from->length);
    mmrt_status status = grow_tables(to, n_pages, err);
    if (status)
        return status;
    for (uint64_t i = 0; i < n_pages; i++) {
        const struct mmrt_page page = from->pages[i];
        mmrt_page_hold(to->store, page);
        set_page(to, i, page);
    }
    to->n_pages = n_pages;
    if (from->block) {
        mmrt_block_hold(to->store, from->block);
        to->block = from->block;
    }
    to->length = from->length;
    return adopt(to, from, err);
}

mmrt_status mmrt_state_fork(const mmrt_state *state, mmrt_state **out, mmrt_error *err) {
    mmrt_state *fork = NULL;
    mmrt_status status = mmrt_state_create(state->store, &fork, err);
    if (status)
        return status;
    mmrt_state_lock();
    status = copy_tables(fork, state, err);
    mmrt_state_unlock();
    if (status)
        mmrt_state_free(fork);
    else
        *out = fork;
    return status;
}
