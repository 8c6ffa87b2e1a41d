/* Passes over units on demand, for test_faults.c, while calls that they make fail. */
#ifndef MMRT_TESTS_DEMAND_FAULTS_H
#define MMRT_TESTS_DEMAND_FAULTS_H

#include "after_faults.h"
#include "source/source.h"

enum { DEMAND_ITEMS = 6, DEMAND_PARTS = 2, DEMAND_BYTES = 6000 };

/* All parts of some items are wanted, and are as in the file. */
static mmrt_status demand_pass(mmrt_source *source, uint32_t first, const uint8_t *bytes,
                               mmrt_error *err) {
    uint32_t items[] = {first, first + 1, first + 2};
    mmrt_status status = mmrt_source_begin(source, err);
    if (status)
        return status;
    mmrt_source_want(source, &(struct mmrt_want){0, items, 3, items, 1, 3});
    for (int i = 0; !status && i < 3 * DEMAND_PARTS; i++) {
        const int32_t unit = (int32_t)items[i % 3] * DEMAND_PARTS + i / 3;
        bool ended;
        const uint8_t *at = mmrt_source_acquire(source, unit, -1, &ended);
        if (!at) {
            status = mmrt_source_error(source, err);
            break;
        }
        CHECK(!memcmp(at, bytes + (size_t)unit * DEMAND_BYTES, DEMAND_BYTES));
        mmrt_source_release(source, unit, 1);
    }
    mmrt_source_end(source, !status);
    return status;
}

static void demand_passes(const char *file, const uint8_t *bytes, mmrt_reader how) {
    const struct mmrt_bank bank = {DEMAND_ITEMS, DEMAND_PARTS, 1, 2};
    struct mmrt_unit units[DEMAND_ITEMS * DEMAND_PARTS];
    mmrt_mapping *mapping = NULL;
    mmrt_source *source = NULL;
    mmrt_plan plan;
    for (uint64_t i = 0; i < DEMAND_ITEMS * DEMAND_PARTS; i++)
        units[i] = (struct mmrt_unit){.rows = 1, .offset = i * DEMAND_BYTES, .bytes = DEMAND_BYTES};
    TRY(mmrt_mapping_open(file, &mapping, &error));
    TRY(mmrt_source_create(&mapping, 1, units, DEMAND_ITEMS * DEMAND_PARTS, 0, &bank, 1, &source,
                           &error));
    TRY(mmrt_source_set_reader(source, how, &error));
    mmrt_source_plan(source, 0, &plan, NULL);
    for (uint64_t i = 0; i < 3; i++) { /* from nearly all to none, and more again */
        const uint64_t parts[] = {9, 0, 5};
        TRY(mmrt_source_set_budget(source, plan.least + parts[i] * (plan.most - plan.least) / 10,
                                   &error));
        TRY(demand_pass(source, (uint32_t)i, bytes, &error));
        TRY(demand_pass(source, 3 - (uint32_t)i, bytes, &error));
    }
end:
    mmrt_source_free(source);
    mmrt_mapping_close(mapping);
}

#endif
