#include "graph/unit_list.h"

#include <stdlib.h>

bool mmrt_list_add(struct list *units, const mmrt_weight *w, const struct place *place,
                   uint64_t first) {
    if (units->n == units->room) {
        const int32_t room = units->room ? 2 * units->room : 256;
        void *grown = realloc(units->at, (size_t)room * sizeof *units->at);
        if (!grown)
            return false;
        units->at = grown;
        units->room = room;
    }
    const uint64_t left = mmrt_all_rows(w) - first;
    const uint64_t rows = left < place->unit_rows ? left : place->unit_rows;
    units->at[units->n++] = (struct mmrt_unit){
        .file = place->file,
        .rows = (uint32_t)rows,
        .offset = place->offset + first * mmrt_row_bytes(w),
        .bytes = rows * mmrt_row_bytes(w),
    };
    return true;
}
