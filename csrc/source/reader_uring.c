/* One thread that keeps as many reads in flight as there are free slots, by io_uring's system
 * calls. */
#define _GNU_SOURCE
#include "source/inside.h"

#include "base/status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#define HAVE_IO_URING 1
#endif
#endif

#ifndef HAVE_IO_URING

mmrt_status mmrt_uring_check(mmrt_error *err) {
    return mmrt_fail(err, MMRT_UNSUPPORTED, "io_uring is not in this build");
}

void *mmrt_reader_uring(void *source) {
    return mmrt_reader_blocking(source);
}

#else

enum { ENTRIES = 64 };

/* The queues shared with the kernel. */
struct uring {
    int fd;
    void *queues; /* both, in one mapping */
    size_t queues_bytes;
    struct io_uring_sqe *entries;
    _Atomic uint32_t *submit_tail, *complete_head, *complete_tail;
    uint32_t *submit_array, submit_mask, complete_mask;
    struct io_uring_cqe *completions;
};

static void uring_close(struct uring *u) {
    if (u->queues && u->queues != MAP_FAILED)
        munmap(u->queues, u->queues_bytes);
    if (u->entries && (void *)u->entries != MAP_FAILED)
        munmap(u->entries, ENTRIES * sizeof *u->entries);
    if (u->fd >= 0)
        close(u->fd);
}

static void *at(const struct uring *u, uint32_t offset) {
    return (uint8_t *)u->queues + offset;
}

static bool uring_open(struct uring *u) {
    struct io_uring_params p = {0};
    *u = (struct uring){.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p)};
    if (u->fd < 0)
        return false;
    const size_t submit = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
    const size_t complete = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    u->queues_bytes = submit > complete ? submit : complete;
    if (p.features & IORING_FEAT_SINGLE_MMAP) { /* Linux 5.4 */
        u->queues = mmap(NULL, u->queues_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                         u->fd, IORING_OFF_SQ_RING);
        u->entries = mmap(NULL, ENTRIES * sizeof *u->entries, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_POPULATE, u->fd, IORING_OFF_SQES);
    }
    if (!u->queues || u->queues == MAP_FAILED || (void *)u->entries == MAP_FAILED) {
        uring_close(u);
        return false;
    }
    u->submit_tail = at(u, p.sq_off.tail);
    u->submit_mask = *(uint32_t *)at(u, p.sq_off.ring_mask);
    u->submit_array = at(u, p.sq_off.array);
    u->complete_head = at(u, p.cq_off.head);
    u->complete_tail = at(u, p.cq_off.tail);
    u->complete_mask = *(uint32_t *)at(u, p.cq_off.ring_mask);
    u->completions = at(u, p.cq_off.cqes);
    return true;
}

/* Plain reads came with Linux 5.6. */
static bool can_read(const struct uring *u) {
    union {
        struct io_uring_probe probe;
        uint8_t room[sizeof(struct io_uring_probe) + 256 * sizeof(struct io_uring_probe_op)];
    } x;
    memset(&x, 0, sizeof x);
    return syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_PROBE, &x.probe, 256) == 0 &&
           x.probe.last_op >= IORING_OP_READ &&
           (x.probe.ops[IORING_OP_READ].flags & IO_URING_OP_SUPPORTED);
}

mmrt_status mmrt_uring_check(mmrt_error *err) {
    struct uring u;
    errno = 0;
    if (!uring_open(&u)) {
        if (errno == ENOSYS)
            return mmrt_fail(err, MMRT_UNSUPPORTED, "this kernel has no io_uring");
        return mmrt_fail(err, MMRT_UNSUPPORTED, "this system does not allow io_uring%s%s",
                         errno ? ": " : "", errno ? strerror(errno) : "");
    }
    const bool can = can_read(&u);
    uring_close(&u);
    return can ? MMRT_OK
               : mmrt_fail(err, MMRT_UNSUPPORTED, "this kernel's io_uring has no plain reads");
}

/* A read in flight. */
struct flight {
    struct mmrt_job job;
    uint64_t done; /* bytes that came already, in whole blocks */
};

static void submit(struct uring *u, const struct flight *flight, uint32_t index) {
    const uint32_t tail = atomic_load_explicit(u->submit_tail, memory_order_relaxed);
    const uint32_t place = tail & u->submit_mask;
    const struct mmrt_job *job = &flight->job;
    u->entries[place] = (struct io_uring_sqe){
        .opcode = IORING_OP_READ,
        .fd = job->file->fd,
        .addr = (uint64_t)(uintptr_t)(job->to + flight->done),
        .len = (uint32_t)(job->span.length - flight->done),
        .off = job->span.start + flight->done,
        .user_data = index,
    };
    u->submit_array[place] = place;
    atomic_store_explicit(u->submit_tail, tail + 1, memory_order_release);
}

/* Whether the flight is over: everything came, or an error. Else its rest is to be submitted. */
static bool land(mmrt_source *source, struct flight *flight, int32_t result) {
    const struct mmrt_job *job = &flight->job;
    mmrt_error error;
    if (result == -EINTR || result == -EAGAIN)
        return false;
    const uint64_t end = flight->done + (result > 0 ? (uint64_t)result : 0);
    if (end >= job->span.need) {
        mmrt_job_complete(source, job, NULL);
        return true;
    }
    const uint64_t whole = end / job->file->align * job->file->align;
    if (result < 0 || whole == flight->done) {
        mmrt_direct_fail(job->file, job->span.start + end, result < 0 ? -result : 0, &error);
        mmrt_job_complete(source, job, &error);
        return true;
    }
    flight->done = whole;
    return false;
}

void *mmrt_reader_uring(void *context) {
    mmrt_source *source = context;
    struct uring u;
    struct flight flights[ENTRIES];
    bool flying[ENTRIES] = {false};
    uint32_t n_flying = 0, n_new = 0;
    if (!uring_open(&u))
        return mmrt_reader_blocking(source);
    for (;;) {
        for (uint32_t i = 0; n_flying < ENTRIES; i++) {
            if (flying[i])
                continue;
            if (!mmrt_job_take(source, MMRT_JOB_READ, !n_flying, &flights[i].job))
                break;
            flights[i].done = 0;
            flying[i] = true;
            submit(&u, &flights[i], i);
            n_flying++, n_new++;
        }
        if (!n_flying)
            break; /* the stream closes */
        const long taken =
            syscall(SYS_io_uring_enter, u.fd, n_new, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        if (taken < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) {
            /* Reads in flight still write to their slots, so wait for them. */
            mmrt_error error;
            mmrt_fail_errno(&error, "io_uring");
            mmrt_source_break_off(source, &error);
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
            continue;
        }
        n_new -= taken > 0 ? (uint32_t)taken : 0;
        uint32_t head = atomic_load_explicit(u.complete_head, memory_order_relaxed);
        const uint32_t tail = atomic_load_explicit(u.complete_tail, memory_order_acquire);
        for (; head != tail; head++) {
            const struct io_uring_cqe *c = &u.completions[head & u.complete_mask];
            const uint32_t i = (uint32_t)c->user_data;
            if (land(source, &flights[i], c->res)) {
                flying[i] = false;
                n_flying--;
            } else {
                submit(&u, &flights[i], i);
                n_new++;
            }
        }
        atomic_store_explicit(u.complete_head, head, memory_order_release);
    }
    uring_close(&u);
    return NULL;
}

#endif
