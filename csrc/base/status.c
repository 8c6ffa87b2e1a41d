#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void write_message(mmrt_error *err, mmrt_status status, int os_errno, const char *format,
                          va_list arguments) {
    err->status = status;
    err->os_errno = os_errno;
    vsnprintf(err->message, sizeof err->message, format, arguments);
}

mmrt_status mmrt_fail(mmrt_error *err, mmrt_status status, const char *format, ...) {
    if (err) {
        va_list arguments;
        va_start(arguments, format);
        write_message(err, status, 0, format, arguments);
        va_end(arguments);
    }
    return status;
}

mmrt_status mmrt_fail_errno(mmrt_error *err, const char *format, ...) {
    int os_errno = errno;
    if (err) {
        va_list arguments;
        va_start(arguments, format);
        write_message(err, MMRT_IO, os_errno, format, arguments);
        va_end(arguments);
        size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, ": %s", strerror(os_errno));
    }
    return MMRT_IO;
}
