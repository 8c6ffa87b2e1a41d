/* What a scenario of test_faults.c does after a call of the core has failed. */
#ifndef MMRT_TESTS_AFTER_FAULTS_H
#define MMRT_TESTS_AFTER_FAULTS_H

#include "mmrt.h"
#include "check.h"
#include "faults.h"

enum mode {
    GO_ON,     /* the call is made again */
    GIVE_UP,   /* all is freed */
    EXHAUSTED, /* all that follows fails too: the call is made again, and then all is freed */
    MODES
};
static const char *const mode_names[MODES] = {"made again", "given up", "all fail"};
static enum mode mode;
static mmrt_error error;

static void check_failure(mmrt_status status, const char *call) {
    const int kinds = atomic_load(&faults.kinds);
    const bool fits = (status == MMRT_NO_MEMORY && kinds & FAULT_MEMORY) ||
                      (status == MMRT_IO && kinds & FAULT_FILE) ||
                      (status == MMRT_UNSUPPORTED && kinds & FAULT_URING);
    if (fits && error.status == status && error.message[0])
        return;
    fprintf(stderr, "%s: status %d, message of %d \"%s\"\n", call, status, error.status,
            error.message);
    check_failures++;
}

/* Makes a call of the core; where it fails and is not to be made again, goes on at `end`. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        error = (mmrt_error){0};                                                                   \
        mmrt_status status_ = (call);                                                              \
        if (status_) {                                                                             \
            check_failure(status_, #call);                                                         \
            if (mode == GIVE_UP)                                                                   \
                goto end;                                                                          \
            error = (mmrt_error){0};                                                               \
            status_ = (call);                                                                      \
            if (status_) {                                                                         \
                check_failure(status_, #call);                                                     \
                CHECK(mode == EXHAUSTED);                                                          \
                goto end;                                                                          \
            }                                                                                      \
        }                                                                                          \
    } while (0)

#endif
