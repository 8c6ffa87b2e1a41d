/* Units in the making. */
#ifndef MMRT_GRAPH_UNIT_LIST_H
#define MMRT_GRAPH_UNIT_LIST_H

#include "graph/program.h"

struct list {
    struct mmrt_unit *at;
    int32_t n;
    int32_t room;
};

/* Appends the unit of a weight that begins at its row `first`. False: no memory. */
bool mmrt_list_add(struct list *units, const mmrt_weight *w, const struct place *place,
                   uint64_t first);

#endif
