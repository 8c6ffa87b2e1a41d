/* Keeping pages in memory. */
#define _GNU_SOURCE
#include "map/mapping.h"

#include "base/status.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

mmrt_status mmrt_fail_locking(uint64_t bytes, mmrt_error *err) {
    struct rlimit limit;
    if ((errno == ENOMEM || errno == EPERM || errno == EAGAIN) &&
        getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        return mmrt_fail(err, MMRT_NO_MEMORY,
                         "cannot lock %llu bytes: RLIMIT_MEMLOCK lets this process lock %llu",
                         (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
    return mmrt_fail_errno(err, "cannot lock %llu bytes", (unsigned long long)bytes);
}

mmrt_status mmrt_mapping_lock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                              bool on_fault, mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;
    mmrt_pages range = mmrt_pages_touched(mapping, offset, length);
    void *start = mapping->data + range.start;
    if (!on_fault) {
        if (mlock(start, (size_t)range.length) == 0)
            return MMRT_OK;
        const int error = errno; /* ENOMEM also says that the file has shrunk */
        status = mmrt_mapping_check(mapping, offset, length, NULL, err);
        errno = error;
        return status != MMRT_OK ? status : mmrt_fail_locking(range.length, err);
    }
#ifdef SYS_mlock2
    if (syscall(SYS_mlock2, start, (size_t)range.length, MLOCK_ONFAULT) == 0)
        return MMRT_OK;
    if (errno != ENOSYS)
        return mmrt_fail_locking(range.length, err);
#endif
    return mmrt_fail(err, MMRT_UNSUPPORTED, "locking pages as they come needs Linux 4.4 or later");
}

mmrt_status mmrt_mapping_unlock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;
    mmrt_pages range = mmrt_pages_touched(mapping, offset, length);
    if (munlock(mapping->data + range.start, (size_t)range.length) != 0)
        return mmrt_fail_errno(err, "cannot unlock pages");
    return MMRT_OK;
}
