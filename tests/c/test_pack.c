/* Every encoder on values of all kinds: it stays in its bytes, and what it writes is finite, whole
 * and nearer to the values than zeros would be. How near on real weights: tests/test_quantize.py.
 */
#define _GNU_SOURCE
#include "quant/quant.h"
#include "cases.h"

enum { N = 2048, KINDS = 12 };

static float value_of(int kind, int i) {
    switch (kind) {
    case 0: return 0;
    case 1: return 0.7f;
    case 2: return -0.7f;
    case 3: return i % 97 == 5 ? -30000.0f : 0; /* spikes */
    case 4: return i % 2 ? 65504.0f : -65504.0f;
    case 5: return 65504.0f - (float)(i % 7);
    case 6: return 1e-7f * random_unit();  /* scales that are subnormal in binary16, */
    case 7: return 1e-20f * random_unit(); /* and 0, */
    case 8: return 1e-40f * random_unit(); /* and values that are subnormal in float32 */
    case 9: return 3 + 0.001f * random_unit();
    case 10: return ldexpf(random_unit(), (int)random_below(30) - 15);
    default: return 0.02f * (random_unit() + random_unit() + random_unit());
    }
}

static void check_pack(const struct mmrt_format *format, struct guarded room, int kind, size_t n) {
    static float values[N], read[N];
    const size_t bytes = n / format->elements * format->bytes;
    const bool at_end = random_below(2);
    uint8_t *blocks = at_end ? room.end - bytes : room.begin;
    double before = 0, after = 0;
    for (size_t i = 0; i < n; i++)
        values[i] = value_of(kind, (int)i);
    format->pack(values, blocks, n);
    format->unpack(blocks, read, n);
    for (size_t i = 0; i < n; i++) {
        before += (double)values[i] * values[i];
        after += ((double)read[i] - values[i]) * ((double)read[i] - values[i]);
    }
    if (!(after <= before * 1.0001))
        case_failed("%s of values of kind %d: squared error %g of %g", format->name, kind, after,
                    before);
}

int main(void) {
    int n_types = 0;
    for (uint32_t type = 0; type < 256; type++) {
        const struct mmrt_format *format = mmrt_format_find(type);
        if (!format || !format->pack)
            continue;
        n_types++;
        struct guarded room = guarded_pages(N / format->elements * format->bytes);
        for (int kind = 0; kind < KINDS; kind++)
            for (size_t n = 0; n <= N; n += n < 512 ? format->elements : 512)
                check_pack(format, room, kind, n);
        guarded_free(room);
    }
    CHECK(n_types == 12);
    return check_result();
}
