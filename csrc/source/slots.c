/* Memory that the disk reads into. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/status.h"

#include <sys/mman.h>

mmrt_status mmrt_slots_reserve(size_t bytes, bool huge, uint8_t **out, mmrt_error *err) {
    enum { HUGE_PAGE = MMRT_HUGE_PAGE };
    const size_t room = bytes + HUGE_PAGE;
    uint8_t *all = mmap(NULL, room, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %zu bytes of streamed weights", bytes);
    const size_t skip = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
    if (skip)
        munmap(all, skip);
    if (HUGE_PAGE - skip)
        munmap(all + skip + bytes, HUGE_PAGE - skip);
    uint8_t *slots = all + skip;
    madvise(slots, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* fewer to pin for a read */
    madvise(slots, bytes, MADV_DONTFORK);                          /* the disk writes to it */
    *out = slots;
    return MMRT_OK;
}

mmrt_status mmrt_slots_map(size_t bytes, uint8_t **out, mmrt_error *err) {
    mmrt_status status = mmrt_slots_reserve(bytes, true, out, err);
    for (size_t i = 0; !status && i < bytes; i += 4096) /* now, so that it can be accounted for */
        (*out)[i] = 0;
    return status;
}
