/* Where a sequence whose layers keep blocks can go back to. For state/ alone, under the lock. */
#ifndef MMRT_STATE_CHECKPOINTS_H
#define MMRT_STATE_CHECKPOINTS_H

#include "state/store.h"

/* The block that the first `length` tokens have left; whoever has the checkpoint holds it. */
struct mmrt_checkpoint {
    uint64_t length;
    struct mmrt_block *block;
    bool brief; /* there until the next step alone */
};

struct mmrt_checkpoints {
    struct mmrt_checkpoint *at; /* [room]; the shortest first */
    uint64_t n, room;
};

/* Room for n more than there are: add cannot fail then. */
mmrt_status mmrt_checkpoints_make_room(struct mmrt_checkpoints *list, uint64_t n, mmrt_error *err);

/* How many of them are of so many tokens at most. */
uint64_t mmrt_checkpoints_up_to(const struct mmrt_checkpoints *list, uint64_t length);

/* Takes over the hold on its block. There must be room, and none of this length. */
void mmrt_checkpoints_add(struct mmrt_checkpoints *list, struct mmrt_checkpoint checkpoint);

/* Forgets number i, and all after the first `n`. */
void mmrt_checkpoints_remove(mmrt_state_store *store, struct mmrt_checkpoints *list, uint64_t i);
void mmrt_checkpoints_cut(mmrt_state_store *store, struct mmrt_checkpoints *list, uint64_t n);

#endif
