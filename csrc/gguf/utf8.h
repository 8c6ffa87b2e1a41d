/* Whether bytes are text: well-formed UTF-8 (no overlong forms, surrogates or numbers past
 * U+10FFFF) without NUL. */
#ifndef MMRT_GGUF_UTF8_H
#define MMRT_GGUF_UTF8_H

#include "mmrt.h"

static inline bool mmrt_is_text(const unsigned char *at, uint64_t length) {
    for (uint64_t i = 0; i < length;) {
        unsigned char lead = at[i++];
        if (lead == 0)
            return false;
        if (lead < 0x80)
            continue;
        if (lead < 0xc2 || lead > 0xf4)
            return false;

        unsigned more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        if (more > length - i)
            return false;
        /* Four leads narrow the byte after them; all other bytes are 80 to BF. */
        unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        for (; more > 0; more--, i++, low = 0x80, high = 0xbf)
            if (at[i] < low || at[i] > high)
                return false;
    }
    return true;
}

#endif
