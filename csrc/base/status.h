/* Filling an mmrt_error: the core's only way to report failure. */
#ifndef MMRT_BASE_STATUS_H
#define MMRT_BASE_STATUS_H

#include "mmrt.h"

/* Records `status` and a printf-style message in `err` (may be NULL) and returns `status`, so that
 * a failure is one line: return mmrt_fail(err, MMRT_FORMAT, "..."). Too long a message is cut. */
mmrt_status mmrt_fail(mmrt_error *err, mmrt_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for a failed system call: status IO, the current errno kept and its text appended. */
mmrt_status mmrt_fail_errno(mmrt_error *err, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
