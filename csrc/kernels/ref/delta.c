#include "kernels/ref/ref.h"

static void run_token(const struct mmrt_delta *d, size_t t, const float *before) {
    const float *key = d->keys[t], *query = d->queries[t];
    for (size_t v = 0; v < d->n_values; v++) {
        double seen = 0, out = 0;
        for (size_t k = 0; k < d->n_keys; k++)
            seen += (double)key[k] * before[k * d->n_values + v];
        const double change = d->betas[t] * (d->values[t][v] - d->decays[t] * seen);
        for (size_t k = 0; k < d->n_keys; k++) {
            const double state = d->decays[t] * (double)before[k * d->n_values + v];
            d->after[k * d->n_values + v] = (float)(state + key[k] * change);
            out += (double)query[k] * d->after[k * d->n_values + v];
        }
        d->out[t][v] = (float)out;
    }
}

void mmrt_delta_ref(const struct mmrt_delta *d) {
    for (size_t t = 0; t < d->n; t++)
        run_token(d, t, t ? d->after : d->before);
}
