#include "kernels/ref/ref.h"

void mmrt_delta_ref(const struct mmrt_delta *d) {
    for (size_t v = 0; v < d->n_values; v++) {
        double seen = 0, out = 0;
        for (size_t k = 0; k < d->n_keys; k++)
            seen += (double)d->key[k] * d->before[k * d->n_values + v];
        const double change = d->beta * (d->value[v] - d->decay * seen);
        for (size_t k = 0; k < d->n_keys; k++) {
            const double state = d->decay * (double)d->before[k * d->n_values + v];
            d->after[k * d->n_values + v] = (float)(state + d->key[k] * change);
            out += (double)d->query[k] * d->after[k * d->n_values + v];
        }
        d->out[v] = (float)out;
    }
}
