/* Asking the caller, during a step, whether to go on. */
#include "step/step.h"

#include <time.h>
#include <unistd.h>

double mmrt_step_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void mmrt_poll_caller(struct worker *w, int32_t last) {
    struct step *step = w->step;
    w->polled = mmrt_step_seconds();
    if (!step->poll)
        return;
    const int process = getpid();
    const bool go_on = !step->poll(step->poll_context);
    step->forked |= getpid() != process; /* by a signal's handler */
    if (go_on && !step->forked)
        return;
    atomic_store(&step->interrupted, !go_on);
    end_after(step, last);
    if (step->program->units && !step->forked)
        mmrt_source_interrupt(step->program->units->source);
}
