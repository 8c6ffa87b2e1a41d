#include "state/checkpoints.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

mmrt_status mmrt_checkpoints_make_room(struct mmrt_checkpoints *list, uint64_t n, mmrt_error *err) {
    if (list->n + n <= list->room)
        return MMRT_OK;
    const uint64_t room = 2 * list->n + n + 4;
    struct mmrt_checkpoint *at = realloc(list->at, room * sizeof *at);
    if (!at)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %llu checkpoints",
                         (unsigned long long)room);
    list->at = at;
    list->room = room;
    return MMRT_OK;
}

uint64_t mmrt_checkpoints_up_to(const struct mmrt_checkpoints *list, uint64_t length) {
    uint64_t n = list->n;
    while (n && list->at[n - 1].length > length)
        n--;
    return n;
}

void mmrt_checkpoints_add(struct mmrt_checkpoints *list, struct mmrt_checkpoint checkpoint) {
    const uint64_t i = mmrt_checkpoints_up_to(list, checkpoint.length);
    memmove(list->at + i + 1, list->at + i, (list->n - i) * sizeof *list->at);
    list->at[i] = checkpoint;
    list->n++;
}

void mmrt_checkpoints_remove(mmrt_state_store *store, struct mmrt_checkpoints *list, uint64_t i) {
    mmrt_block_drop(store, &list->at[i].block);
    list->n--;
    memmove(list->at + i, list->at + i + 1, (list->n - i) * sizeof *list->at);
}

void mmrt_checkpoints_cut(mmrt_state_store *store, struct mmrt_checkpoints *list, uint64_t n) {
    while (list->n > n)
        mmrt_block_drop(store, &list->at[--list->n].block);
}
