/* Units in use: waiting for them, and giving them back. */
#include "source/inside.h"

#include <math.h>
#include <time.h>

bool mmrt_source_is_kept(const mmrt_source *source, int32_t first, int32_t end) {
    if (!source->limited)
        return true;
    for (int32_t i = first; i < end; i++)
        if (source->units[i].streamed || !atomic_load(&source->units[i].at))
            return false;
    return true;
}

/* False when the time is over. */
static bool wait_for_readers(mmrt_source *source, const struct timespec *deadline) {
    if (!deadline)
        return pthread_cond_wait(&source->ready, &source->lock) == 0;
    return pthread_cond_timedwait(&source->ready, &source->lock, deadline) == 0;
}

const uint8_t *mmrt_source_acquire(mmrt_source *source, int32_t index, double seconds,
                                   bool *ended) {
    struct unit *unit = &source->units[index];
    const uint8_t *at = atomic_load_explicit(&unit->at, memory_order_acquire);
    *ended = false;
    if (at)
        return at;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline); /* what a condition's time is counted in */
    const double nanoseconds = (double)deadline.tv_nsec + (seconds < 0 ? 0 : seconds) * 1e9;
    deadline.tv_sec += (time_t)(nanoseconds / 1e9);
    deadline.tv_nsec = (long)fmod(nanoseconds, 1e9);
    pthread_mutex_lock(&source->lock);
    if (!source->n_waiting++)
        source->stalled_since = mmrt_seconds();
    do {
        at = atomic_load_explicit(&unit->at, memory_order_acquire);
        *ended = source->failed || source->interrupted;
    } while (!at && !*ended && wait_for_readers(source, seconds < 0 ? NULL : &deadline));
    if (!--source->n_waiting) {
        const double waited = mmrt_seconds() - source->stalled_since;
        source->stats.stall_seconds += waited;
        if (is_on_demand(source, index))
            source->cache.banks[source->cache.items[unit->item].bank].stats.stall_seconds += waited;
    }
    pthread_mutex_unlock(&source->lock);
    return at;
}

void mmrt_source_release(mmrt_source *source, int32_t index, uint32_t rows) {
    struct unit *unit = &source->units[index];
    if (!unit->streamed || (is_on_demand(source, index) && unit->slot < 0) ||
        atomic_fetch_sub_explicit(&unit->rows_left, rows, memory_order_acq_rel) != rows)
        return;
    pthread_mutex_lock(&source->lock);
    if (is_on_demand(source, index))
        mmrt_unit_passed(source, unit);
    else
        mmrt_ring_detach(source, unit);
    pthread_mutex_unlock(&source->lock);
}

void mmrt_source_interrupt(mmrt_source *source) {
    pthread_mutex_lock(&source->lock);
    source->interrupted = true;
    pthread_cond_broadcast(&source->ready);
    pthread_mutex_unlock(&source->lock);
}

mmrt_status mmrt_source_error(mmrt_source *source, mmrt_error *err) {
    pthread_mutex_lock(&source->lock);
    const mmrt_error error = source->error;
    pthread_mutex_unlock(&source->lock);
    if (err)
        *err = error;
    return error.status;
}

int32_t mmrt_source_failed_unit(mmrt_source *source) {
    pthread_mutex_lock(&source->lock);
    const int32_t unit = source->failed_unit;
    pthread_mutex_unlock(&source->lock);
    return unit;
}
