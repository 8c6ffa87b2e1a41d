#include "grids.h"

/* A row of 16 entries, each a number whose digits are the levels of the elements. */
#define ROW(ENTRY, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)                                 \
    ENTRY(0x##a), ENTRY(0x##b), ENTRY(0x##c), ENTRY(0x##d), ENTRY(0x##e), ENTRY(0x##f),            \
        ENTRY(0x##g), ENTRY(0x##h), ENTRY(0x##i), ENTRY(0x##j), ENTRY(0x##k), ENTRY(0x##l),        \
        ENTRY(0x##m), ENTRY(0x##n), ENTRY(0x##o), ENTRY(0x##p),

/* Digits of two bits, eight elements. */
#define PAIR(LEVEL, entry, i) (uint64_t)LEVEL((entry) >> (2 * (i)) & 3) << (8 * (i))
#define EIGHT(LEVEL, e)                                                                            \
    (PAIR(LEVEL, e, 0) | PAIR(LEVEL, e, 1) | PAIR(LEVEL, e, 2) | PAIR(LEVEL, e, 3) |               \
     PAIR(LEVEL, e, 4) | PAIR(LEVEL, e, 5) | PAIR(LEVEL, e, 6) | PAIR(LEVEL, e, 7))

/* Digits of four bits, four elements. */
#define NIBBLE(LEVEL, entry, i) (uint32_t)LEVEL((entry) >> (4 * (i)) & 7) << (8 * (i))
#define FOUR(LEVEL, e)                                                                             \
    (NIBBLE(LEVEL, e, 0) | NIBBLE(LEVEL, e, 1) | NIBBLE(LEVEL, e, 2) | NIBBLE(LEVEL, e, 3))

#define LEVEL_IQ1(digit)     (uint8_t)((digit) - 1)
#define LEVEL_IQ2(digit)     ((digit) == 0 ? 8 : (digit) == 1 ? 25 : 43)
#define LEVEL_IQ3_XXS(digit) ((digit) < 7 ? 8 * (digit) + 4 : 62)
#define LEVEL_IQ3_S(digit)   (2 * (digit) + 1)

#define ENTRY_IQ1(e)     EIGHT(LEVEL_IQ1, e)
#define ENTRY_IQ2(e)     EIGHT(LEVEL_IQ2, e)
#define ENTRY_IQ3_XXS(e) FOUR(LEVEL_IQ3_XXS, e)
#define ENTRY_IQ3_S(e)   FOUR(LEVEL_IQ3_S, e)

const uint64_t mmrt_grid_iq1[2048] = {
#define MMRT_IQ1_S(...) ROW(ENTRY_IQ1, __VA_ARGS__)
#include "iq1_grids.def"
};

const uint64_t mmrt_grid_iq2_xxs[256] = {
#define MMRT_IQ2_XXS(...) ROW(ENTRY_IQ2, __VA_ARGS__)
#include "iq2_grids.def"
};

const uint64_t mmrt_grid_iq2_xs[512] = {
#define MMRT_IQ2_XS(...) ROW(ENTRY_IQ2, __VA_ARGS__)
#include "iq2_grids.def"
};

const uint64_t mmrt_grid_iq2_s[1024] = {
#define MMRT_IQ2_S(...) ROW(ENTRY_IQ2, __VA_ARGS__)
#include "iq2_grids.def"
};

const uint32_t mmrt_grid_iq3_xxs[256] = {
#define MMRT_IQ3_XXS(...) ROW(ENTRY_IQ3_XXS, __VA_ARGS__)
#include "iq3_grids.def"
};

const uint32_t mmrt_grid_iq3_s[512] = {
#define MMRT_IQ3_S(...) ROW(ENTRY_IQ3_S, __VA_ARGS__)
#include "iq3_grids.def"
};

const int8_t mmrt_values_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};

const int8_t mmrt_values_fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
