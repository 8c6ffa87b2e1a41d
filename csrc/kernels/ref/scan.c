#include "kernels/ref/ref.h"

#include <math.h>

/* With the roundings of the fast ones, which share these out among vectors of values alone. */
static void run_token(const struct mmrt_scan *s, size_t t, const float *before) {
    for (size_t v = 0; v < s->n_values; v++) {
        const float change = s->steps[t] * s->x[t][v];
        float out = s->skip * s->x[t][v];
        for (size_t i = 0; i < s->n_states; i++) {
            const size_t at = i * s->n_values + v;
            const float decayed = s->decays[t] * before[at];
            s->after[at] = fmaf(s->b[t][i], change, decayed);
            out = fmaf(s->c[t][i], s->after[at], out);
        }
        s->out[t][v] = out;
    }
}

void mmrt_scan_ref(const struct mmrt_scan *s) {
    for (size_t t = 0; t < s->n; t++)
        run_token(s, t, t ? s->after : s->before);
}
