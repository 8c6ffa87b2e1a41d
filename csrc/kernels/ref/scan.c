#include "kernels/ref/ref.h"

#include <math.h>

/* With the roundings of the fast ones, which share these out among vectors of values alone. */
void mmrt_scan_ref(const struct mmrt_scan *s) {
    for (size_t v = 0; v < s->n_values; v++) {
        const float change = s->step * s->x[v];
        float out = s->skip * s->x[v];
        for (size_t i = 0; i < s->n_states; i++) {
            const size_t at = i * s->n_values + v;
            const float decayed = s->decay * s->before[at];
            s->after[at] = fmaf(s->b[i], change, decayed);
            out = fmaf(s->c[i], s->after[at], out);
        }
        s->out[v] = out;
    }
}
