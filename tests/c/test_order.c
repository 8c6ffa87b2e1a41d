/* The order in which units are kept. */
#include "source/order.h"
#include "check.h"

#include <stdbool.h>

enum { MOST = 1500 };
static uint64_t bytes[MOST];
static uint32_t order[MOST];

static void test_each_unit_comes_once(size_t n) {
    static unsigned seen[MOST];
    memset(seen, 0, sizeof seen);
    for (size_t i = 0; i < n; i++)
        bytes[i] = i % 7 == 3 ? 1000 : 2 << 20;
    mmrt_keep_order(bytes, n, order);
    size_t small = 0;
    for (size_t i = 0; i < n; i++) {
        CHECK(order[i] < n);
        seen[order[i]]++;
        small += bytes[order[i]] == 1000 && i == small;
    }
    for (size_t i = 0; i < n; i++)
        CHECK(seen[i] == 1);
    CHECK(small == (n + 3) / 7); /* they come first */
}

/* However many are kept, no stretch between two kept ones is more than about twice as long as it
 * has to be, and no stretch of kept ones either. */
static void test_every_beginning_is_spread(size_t n) {
    for (size_t i = 0; i < n; i++)
        bytes[i] = 2 << 20;
    mmrt_keep_order(bytes, n, order);
    static bool kept[MOST];
    memset(kept, 0, sizeof kept);
    for (size_t k = 1; k < n; k++) {
        kept[order[k - 1]] = true;
        for (int value = 0; value < 2; value++) {
            size_t longest = 0, run = 0;
            for (size_t i = 0; i < 2 * n; i++) {
                run = kept[i % n] == value ? run + 1 : 0;
                longest = run > longest ? run : longest;
            }
            const size_t of = value ? k : n - k, others = n - of;
            CHECK(longest <= 3 * (of + others - 1) / others);
        }
    }
}

static void test_what_fits(void) {
    for (size_t i = 0; i < 100; i++)
        bytes[i] = i < 10 ? 1000 : 1 << 20;
    mmrt_keep_order(bytes, 100, order);
    uint64_t used;
    CHECK(mmrt_keep_fit(bytes, order, 100, 0, &used) == 0 && used == 0);
    CHECK(mmrt_keep_fit(bytes, order, 100, 10000 + (5 << 20), &used) == 15);
    CHECK(used == 10000 + (5 << 20));
    CHECK(mmrt_keep_fit(bytes, order, 100, UINT64_MAX, &used) == 100);
    CHECK(used == 10000 + (90 << 20));
    CHECK(mmrt_keep_fit(bytes, order, 0, 1000, &used) == 0);
}

int main(void) {
    for (size_t n = 0; n < 60; n++)
        test_each_unit_comes_once(n);
    test_each_unit_comes_once(MOST);
    for (size_t n = 1; n < 60; n++)
        test_every_beginning_is_spread(n);
    test_every_beginning_is_spread(377);
    test_every_beginning_is_spread(500);
    test_what_fits();
    return check_result();
}
