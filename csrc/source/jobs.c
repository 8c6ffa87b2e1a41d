/* Which job a reader takes next, and what follows when it is done. */
#include "source/inside.h"

static bool next_load(mmrt_source *source, struct mmrt_job *job) {
    if (source->failed)
        return false;
    for (int32_t looked = 0; source->n_absent && looked < source->n_units; looked++) {
        const int32_t index = source->load_cursor;
        struct unit *unit = &source->units[index];
        source->load_cursor = (index + 1) % source->n_units;
        if (unit->state != UNIT_ABSENT)
            continue;
        unit->state = UNIT_LOADING;
        source->n_absent--;
        *job = (struct mmrt_job){.kind = MMRT_JOB_LOAD, .unit = index, .slot = -1, .behind = -1};
        return true;
    }
    return false;
}

/* Units that a user is waiting for come before those that are read ahead. */
static bool next_read(mmrt_source *source, struct mmrt_job *job) {
    return !source->failed && (mmrt_cache_next(source, job) || mmrt_ring_next(source, job));
}

bool mmrt_job_take(mmrt_source *source, int kinds, bool wait, struct mmrt_job *job) {
    bool found = false;
    pthread_mutex_lock(&source->lock);
    while (!source->closing) {
        found = ((kinds & MMRT_JOB_READ) && next_read(source, job)) ||
                ((kinds & MMRT_JOB_LOAD) && next_load(source, job));
        if (found || !wait)
            break;
        pthread_cond_wait(kinds & MMRT_JOB_READ ? &source->reads : &source->loads, &source->lock);
    }
    pthread_mutex_unlock(&source->lock);
    return found;
}

/* Whether the unit's pages are to stay. */
static bool complete_load(mmrt_source *source, const struct mmrt_job *job,
                          const mmrt_error *error) {
    struct unit *unit = &source->units[job->unit];
    if (unit->state != UNIT_LOADING) /* the plan has changed */
        return !unit->streamed;
    if (error) {
        unit->state = UNIT_ABSENT;
        source->n_absent++;
        mmrt_source_fail(source, job->unit, error);
        return true;
    }
    unit->state = UNIT_KEPT;
    source->stats.loaded_bytes += unit->range.bytes;
    atomic_store_explicit(&unit->at, mmrt_mapped_unit(source, unit), memory_order_release);
    return true;
}

void mmrt_source_break_off(mmrt_source *source, const mmrt_error *error) {
    pthread_mutex_lock(&source->lock);
    mmrt_source_fail(source, -1, error);
    pthread_cond_broadcast(&source->ready);
    pthread_mutex_unlock(&source->lock);
}

void mmrt_job_complete(mmrt_source *source, const struct mmrt_job *job, const mmrt_error *error) {
    bool stays = true;
    pthread_mutex_lock(&source->lock);
    if (job->kind == MMRT_JOB_LOAD)
        stays = complete_load(source, job, error);
    else if (is_on_demand(source, job->unit))
        mmrt_cache_complete(source, job, error);
    else
        mmrt_ring_complete(source, job, error);
    pthread_cond_broadcast(&source->ready);
    pthread_mutex_unlock(&source->lock);
    if (!stays)
        mmrt_drop_unit(source, job->unit);
}
