/* Memory that the disk reads into. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/status.h"

#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

mmrt_status mmrt_slots_map(size_t bytes, uint8_t **out, mmrt_error *err) {
    const size_t room = bytes + HUGE_PAGE;
    uint8_t *all = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for %zu bytes of streamed weights", bytes);
    const size_t skip = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
    if (skip)
        munmap(all, skip);
    if (HUGE_PAGE - skip)
        munmap(all + skip + bytes, HUGE_PAGE - skip);
    uint8_t *slots = all + skip;
    madvise(slots, bytes, MADV_HUGEPAGE);    /* fewer pages to pin for each read */
    madvise(slots, bytes, MADV_DONTFORK);    /* the disk writes to it */
    for (size_t i = 0; i < bytes; i += 4096) /* all of it now, so that it can be accounted for */
        slots[i] = 0;
    *out = slots;
    return MMRT_OK;
}
