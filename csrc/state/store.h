/* The memory that sequences hold: extents of pages, and blocks. For state/ alone. */
#ifndef MMRT_STATE_STORE_H
#define MMRT_STATE_STORE_H

#include "state/page.h"
#include "state/state.h"

/* Pages come from the system by extents of so many. In an extent, the parts of its pages that one
 * layer and head reads lie side by side, as runs of 64 KiB are read twice as fast as runs of 8 KiB.
 * Memory is taken as pages are written. */
enum { MMRT_EXTENT_PAGES = MMRT_SAVED_TOKENS / MMRT_PAGE_KEYS };

struct mmrt_extent {
    uint8_t *base;
    uint64_t number;                     /* of all that the store has had */
    mmrt_mapping *file;                  /* whose bytes they are, only read; NULL: its own memory */
    uint32_t holders[MMRT_EXTENT_PAGES]; /* sequences that hold each of its pages; 0: it is free */
    bool claimed; /* a sequence goes on here: its free pages are for that one alone */
    bool spare;   /* it is in the store's list: not claimed, and some of its pages are free */
    struct mmrt_extent *previous, *next; /* in that list */
};

struct mmrt_page {
    struct mmrt_extent *extent;
    uint32_t slot;
};

struct mmrt_block {
    uint8_t *bytes;
    uint32_t holders;
};

struct mmrt_state_store {
    /* the layout */
    uint32_t n_layers;
    struct mmrt_state_layer *layers;
    uint32_t n_tables;
    size_t *slot_bytes; /* [n_tables]: from a page's address to the next one's in its extent */
    uint64_t page_bytes, extent_bytes, block_bytes;
    /* under the lock */
    uint32_t n_users;
    uint64_t n_pages, n_blocks;           /* held */
    uint64_t n_page_holds, n_block_holds; /* the same, counted for each sequence that holds one */
    uint64_t n_extents, n_copies;         /* so far */
    uint64_t n_mapped;                    /* pages of files that are held */
    struct mmrt_extent *spares;
};

/* Lays the layers out in a store that is all zeros otherwise. */
mmrt_status mmrt_state_lay_out(mmrt_state_store *store, const mmrt_layer_state *layers,
                               mmrt_error *err);

/* One lock for the memory of all stores and sequences. A fork takes it, so that a child finds them
 * whole. It is held for the time of a few system calls, or of copying a page. */
void mmrt_state_lock(void);
void mmrt_state_unlock(void);

/* ---- all that follows: under the lock ---- */

/* Where a page's part is for the layers of a table. */
static inline uint8_t *mmrt_page_address(const mmrt_state_store *store, struct mmrt_page page,
                                         uint32_t table) {
    return page.extent->base + page.slot * store->slot_bytes[table];
}

/* A sequence claims one extent at most, *open, to go on in; NULL: none. This gives that one up, and
 * claims `extent` unless it is NULL or another's. */
void mmrt_extent_claim(mmrt_state_store *store, struct mmrt_extent **open,
                       struct mmrt_extent *extent);

/* A free page of the extent *open, or else of one that is claimed for that. */
mmrt_status mmrt_page_take(mmrt_state_store *store, struct mmrt_extent **open,
                           struct mmrt_page *page, mmrt_error *err);

/* Another sequence holds it too. */
void mmrt_page_hold(mmrt_state_store *store, struct mmrt_page page);
void mmrt_block_hold(mmrt_state_store *store, struct mmrt_block *block);

/* Pages that a sequence lets go of. The memory of those that no other holds goes to the system. */
void mmrt_pages_drop(mmrt_state_store *store, const struct mmrt_page *pages, uint64_t n);

/* IO if the page to copy is of a file that has lost it. */
mmrt_status mmrt_page_copy(mmrt_state_store *store, struct mmrt_page to, struct mmrt_page from,
                           mmrt_error *err);

/* An extent that is a mapped file, of which the caller takes `n_pages`, the first ones. It closes
 * the file with the last of them. */
mmrt_status mmrt_extent_of_file(mmrt_state_store *store, mmrt_mapping *file, uint32_t n_pages,
                                struct mmrt_extent **out, mmrt_error *err);

/* Lengthens a sequence of whole extents by n tokens, whose pages are those of a mapped file, and
 * which have left `block`, or NULL. Takes the lock itself. The sequence owns both if that is done.
 */
mmrt_status mmrt_state_append(mmrt_state *state, mmrt_mapping *file, uint64_t n,
                              struct mmrt_block *block, mmrt_error *err);

/* The bytes of the block that the first `length` tokens have left; NULL: it is not there. Takes the
 * lock; they hold while nobody changes the sequence. */
const uint8_t *mmrt_state_block_at(const mmrt_state *state, uint64_t length);

/* A block of zeros. */
mmrt_status mmrt_block_take(mmrt_state_store *store, struct mmrt_block **block, mmrt_error *err);
void mmrt_block_drop(mmrt_state_store *store, struct mmrt_block **block);

#endif
