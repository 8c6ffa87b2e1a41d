#define _GNU_SOURCE
#include "map/guard.h"

#include "base/status.h"
#include "map/mapping.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- the guarded mappings ------------------------------------------------------------------ */

/* One mapping's entry in a list that only grows: slots are used again but never freed, so that the
 * handler can walk the list at any time. */
struct mmrt_guard {
    struct mmrt_guard *next;
    atomic_bool taken;
    atomic_uint version; /* odd while the fields below change */
    _Atomic uintptr_t start;
    _Atomic uintptr_t length; /* 0: guards nothing */
    _Atomic(mmrt_mapping *) mapping;
    atomic_int fd;             /* of the file; -1: there is none */
    _Atomic int64_t last_page; /* where in the file the last page begins that is mapped of it */
};

static _Atomic(struct mmrt_guard *) guards;

static int64_t last_page(const mmrt_mapping *mapping, uint64_t length) {
    return (int64_t)(mapping->offset + length) - (int64_t)mapping->unit;
}

static void guard(struct mmrt_guard *slot, mmrt_mapping *mapping, uintptr_t start,
                  uintptr_t length) {
    atomic_fetch_add(&slot->version, 1);
    atomic_store(&slot->start, start);
    atomic_store(&slot->length, length);
    atomic_store(&slot->mapping, mapping);
    atomic_store(&slot->fd, mapping ? atomic_load(&mapping->file.fd) : -1);
    atomic_store(&slot->last_page, mapping ? last_page(mapping, length) : 0);
    atomic_fetch_add(&slot->version, 1);
}

/* Whether the file of any guarded mapping has lost pages that nothing has replaced yet. Touches no
 * mapping, since another thread may be closing it. */
static bool a_file_is_cut(void) {
    for (struct mmrt_guard *slot = atomic_load(&guards); slot; slot = slot->next) {
        const int fd = atomic_load(&slot->fd);
        struct stat file;
        if (atomic_load(&slot->length) && fd >= 0 && fstat(fd, &file) == 0 &&
            file.st_size <= atomic_load(&slot->last_page))
            return true;
    }
    return false;
}

mmrt_mapping *mmrt_guard_find(const void *address) {
    for (struct mmrt_guard *slot = atomic_load(&guards); slot; slot = slot->next) {
        const unsigned version = atomic_load(&slot->version);
        const uintptr_t start = atomic_load(&slot->start), length = atomic_load(&slot->length);
        mmrt_mapping *mapping = atomic_load(&slot->mapping);
        /* A slot that changes during this look-up does not belong to a mapping in use. */
        if ((uintptr_t)address - start < length && version % 2 == 0 &&
            atomic_load(&slot->version) == version)
            return mapping;
    }
    return NULL;
}

/* ---- the handler --------------------------------------------------------------------------- */

/* The handler before ours, and one that took our place later, which may chain to ours. */
static struct sigaction before, between;
static bool is_between;

/* Puts zeros in the place of all that lies past the file's end, or where the byte at `at` does not,
 * of its page. False if that cannot be done. */
static bool replace(mmrt_mapping *mapping, uint64_t at) {
    const uint64_t unit = mapping->unit, mapped = mmrt_mapped_bytes(mapping);
    uint64_t start = at / unit * unit, length = unit, size = 0;
    if (mmrt_file_size(&mapping->file, &size)) {
        const uint64_t there = size > mapping->offset ? size - mapping->offset : 0;
        const uint64_t end = (there + unit - 1) / unit * unit;
        if (end <= start) {
            start = end;
            length = mapped - end;
        }
    }
    /* As a raw call: the C library's may be another's (a sanitizer's), and not made for this. */
    const long protection = PROT_READ | (mapping->writable ? PROT_WRITE : 0);
    const long flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (syscall(SYS_mmap, mapping->data + start, length, protection, flags, -1L, 0L) == -1)
        return false;
    if (start + length == mapped)
        atomic_store(&mapping->guard->last_page, last_page(mapping, start));
    if (atomic_load(&mapping->loss.at) == 0) {
        uint64_t nothing = 0;
        atomic_store(&mapping->loss.file_size, size);
        atomic_compare_exchange_strong(&mapping->loss.at, &nothing, at + 1);
    }
    return true;
}

/* Hands a signal on to who would have got it without us. */
static void pass_on(int number, siginfo_t *info, void *context) {
    const bool fault = info->si_code > 0; /* met again when we return; else sent by a process */
    if (is_between || before.sa_handler == SIG_DFL || (before.sa_handler == SIG_IGN && fault)) {
        /* Not called but put in our place, so that nothing can go round in circles: until
         * mmrt_guard_renew, ours is out of the way. */
        const struct sigaction end = {.sa_handler = SIG_DFL};
        sigaction(number, is_between ? &between : &end, NULL);
        is_between = false;
        if (!fault)
            raise(number);
    } else if (before.sa_handler == SIG_IGN) {
        return;
    } else if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else {
        before.sa_handler(number);
    }
}

/* Whether this is a fault of ours that reached us by way of a handler which came later: Python's
 * faulthandler reports it, puts back the handler before it, ours, and raises the signal again.
 * Then it says no more of the fault; but when we return, the fault is met again. */
static bool comes_again(const siginfo_t *info) {
    return !is_between && info->si_code == SI_TKILL && info->si_pid == getpid() && a_file_is_cut();
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    const bool page_missing = info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR
#ifdef BUS_MCEERR_AR
                              || info->si_code == BUS_MCEERR_AR /* broken memory was touched */
#endif
        ;
    mmrt_mapping *mapping = page_missing ? mmrt_guard_find(info->si_addr) : NULL;
    const bool done =
        mapping ? replace(mapping, (uint64_t)((unsigned char *)info->si_addr - mapping->data))
                : comes_again(info);
    if (!done)
        pass_on(number, info, context);
    errno = saved;
}

static bool is_ours(const struct sigaction *action) {
    return action->sa_flags & SA_SIGINFO && action->sa_sigaction == on_bus_error;
}

void mmrt_guard_renew(void) {
    static bool installed;
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    struct sigaction now, ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    ours.sa_sigaction = on_bus_error;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, NULL, &now);
    if (is_ours(&now) || atomic_flag_test_and_set(&busy))
        return;
    sigaction(SIGBUS, NULL, &now);
    if (!is_ours(&now)) {
        is_between = installed && now.sa_handler != before.sa_handler;
        *(is_between ? &between : &before) = now;
        sigaction(SIGBUS, &ours, NULL);
        installed = true;
    }
    atomic_flag_clear(&busy);
}

/* ---- beginning and ending ------------------------------------------------------------------ */

/* A slot that is no other's; NULL without memory. */
static struct mmrt_guard *take_slot(void) {
    for (struct mmrt_guard *slot = atomic_load(&guards); slot; slot = slot->next) {
        bool no = false;
        if (atomic_compare_exchange_strong(&slot->taken, &no, true))
            return slot;
    }
    struct mmrt_guard *slot = calloc(1, sizeof *slot);
    if (slot) {
        atomic_store(&slot->taken, true);
        slot->next = atomic_load(&guards);
        while (!atomic_compare_exchange_weak(&guards, &slot->next, slot)) {
        }
    }
    return slot;
}

mmrt_status mmrt_guard_begin(mmrt_mapping *mapping, mmrt_error *err) {
    mmrt_guard_renew();
    mapping->guard = take_slot();
    if (!mapping->guard)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a mapping");
    guard(mapping->guard, mapping, (uintptr_t)mapping->data, (uintptr_t)mmrt_mapped_bytes(mapping));
    return MMRT_OK;
}

void mmrt_guard_end(mmrt_mapping *mapping) {
    if (!mapping->guard)
        return;
    guard(mapping->guard, NULL, 0, 0);
    atomic_store(&mapping->guard->taken, false);
}

/* ---- asking -------------------------------------------------------------------------------- */

static mmrt_status lost(mmrt_mapping *mapping, uint64_t at, uint64_t file_size, mmrt_error *err) {
    atomic_store(&mapping->loss.reported, true);
    const char *name = mapping->name ? mapping->name : "memory";
    const unsigned long long byte = mapping->offset + at;
    if (mapping->has_file && file_size <= byte)
        return mmrt_fail(
            err, MMRT_IO,
            "%s: byte %llu is gone: the file was cut to %llu bytes while it was mapped", name, byte,
            (unsigned long long)file_size);
    return mmrt_fail(err, MMRT_IO, "%s: byte %llu could not be had: %s", name, byte,
                     !mapping->has_file ? "no huge page was free"
                     : mapping->writable
                         ? "the disk is full or failed, or the file was cut while it was mapped"
                         : "the disk failed, or the file was cut while it was mapped");
}

mmrt_status mmrt_mapping_check(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                               uint64_t *gone, mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    uint64_t at = atomic_load(&mapping->loss.at);
    if (at) {
        if (gone)
            *gone = at - 1;
        return lost(mapping, at - 1, atomic_load(&mapping->loss.file_size), err);
    }
    uint64_t size = 0;
    if (!length || !mmrt_file_size(&mapping->file, &size))
        return MMRT_OK;
    /* Where the file ends within a page, the rest of it reads as zeros, without a signal. */
    if (size >= mapping->offset + offset + length)
        return MMRT_OK;
    at = size > mapping->offset + offset ? size - mapping->offset : offset;
    if (gone)
        *gone = at;
    return lost(mapping, at, size, err);
}

mmrt_status mmrt_bytes_check(const void *bytes, uint64_t length, mmrt_error *err) {
    mmrt_mapping *mapping = length ? mmrt_guard_find(bytes) : NULL;
    if (!mapping)
        return MMRT_OK;
    const uint64_t offset = (uint64_t)((const unsigned char *)bytes - mapping->data);
    const uint64_t rest = mapping->size - offset;
    return mmrt_mapping_check(mapping, offset, length < rest ? length : rest, NULL, err);
}

bool mmrt_mapping_unreported(const mmrt_mapping *mapping) {
    return atomic_load(&mapping->loss.at) && !atomic_load(&mapping->loss.reported);
}
