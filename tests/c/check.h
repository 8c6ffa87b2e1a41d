/* The assertions of the C tests: a failed CHECK says where and is counted; main returns
 * check_result(). */
#ifndef MMRT_TESTS_CHECK_H
#define MMRT_TESTS_CHECK_H

#include <stdio.h>
#include <string.h>

static int check_failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

/* That a call gives this status, and that a failure's message holds `words`. */
#define CHECK_STATUS(call, expected, error, words)                                                 \
    do {                                                                                           \
        (error)->message[0] = 0;                                                                   \
        mmrt_status got_ = (call);                                                                 \
        if (got_ != (expected) || !strstr((error)->message, (words))) {                            \
            fprintf(stderr, "%s:%d: %s: status %d, message \"%s\"\n", __FILE__, __LINE__, #call,   \
                    got_, (error)->message);                                                       \
            check_failures++;                                                                      \
        }                                                                                          \
    } while (0)

static inline int check_result(void) {
    if (check_failures)
        fprintf(stderr, "%d checks failed\n", check_failures);
    return check_failures != 0;
}

#endif
