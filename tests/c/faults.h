/* Calls of the C library and the kernel that can be made to fail, for a program linked with
 * -Wl,--wrap=NAME for each name of WRAPPED in tests/test_core.py. Counts what is held meanwhile:
 * blocks, mapped bytes, threads. */
#ifndef MMRT_TESTS_FAULTS_H
#define MMRT_TESTS_FAULTS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What a failed call is about, and so which status its caller is to return. */
enum fault_kind { FAULT_MEMORY = 1, FAULT_FILE = 2, FAULT_URING = 4 };

static struct {
    atomic_long calls;  /* that can fail, since the last arm() */
    long first, last;   /* which of them do */
    atomic_int kinds;   /* of those that did */
    const char *name;   /* of the last that did */
    atomic_long blocks; /* held */
    atomic_long mapped; /* bytes held */
    atomic_long threads;
} faults;

/* From now on calls number `first` to `last` fail, counted from 1. */
static inline void arm(long first, long last) {
    atomic_store(&faults.kinds, 0);
    atomic_store(&faults.calls, 0);
    faults.first = first;
    faults.last = last;
}

static inline void disarm(void) {
    faults.first = 1;
    faults.last = 0;
}

static inline bool fault(const char *name, enum fault_kind kind) {
    const long number = atomic_fetch_add(&faults.calls, 1) + 1;
    if (number < faults.first || number > faults.last)
        return false;
    faults.name = name;
    atomic_fetch_or(&faults.kinds, (int)kind);
    errno = kind == FAULT_FILE ? EMFILE : ENOMEM;
    return true;
}

/* Descriptors that this process has open. */
static inline int open_files(void) {
    int n = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder && readdir(folder))
        n++;
    closedir(folder);
    return n;
}

static inline void *held(void *block) {
    faults.blocks += block != NULL;
    return block;
}

/* ---- memory ---- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
char *__real_strdup(const char *text);
void __real_free(void *block);
void *__real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *address, size_t length);

void *__wrap_malloc(size_t size) {
    return fault("malloc", FAULT_MEMORY) ? NULL : held(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size) {
    return fault("calloc", FAULT_MEMORY) ? NULL : held(__real_calloc(n, size));
}

void *__wrap_realloc(void *block, size_t size) {
    if (fault("realloc", FAULT_MEMORY))
        return NULL;
    faults.blocks -= block != NULL;
    return held(__real_realloc(block, size));
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return fault("aligned_alloc", FAULT_MEMORY) ? NULL
                                                : held(__real_aligned_alloc(alignment, size));
}

char *__wrap_strdup(const char *text) {
    return fault("strdup", FAULT_MEMORY) ? NULL : held(__real_strdup(text));
}

void __wrap_free(void *block) {
    faults.blocks -= block != NULL;
    __real_free(block);
}

static long whole_pages(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (long)((bytes + page - 1) / page * page);
}

/* Of io_uring's queues it is those that are mapped for reading ahead. */
void *__wrap_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    if (fault("mmap", flags & MAP_POPULATE ? FAULT_URING : FAULT_MEMORY))
        return MAP_FAILED;
    void *at = __real_mmap(address, length, protection, flags, fd, offset);
    faults.mapped += at == MAP_FAILED ? 0 : whole_pages(length);
    return at;
}

int __wrap_munmap(void *address, size_t length) {
    faults.mapped -= whole_pages(length);
    return __real_munmap(address, length);
}

/* ---- threads ---- */

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*body)(void *), void *context);
int __real_pthread_join(pthread_t thread, void **result);
int __real_pthread_timedjoin_np(pthread_t thread, void **result, const struct timespec *deadline);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*body)(void *), void *context) {
    if (fault("pthread_create", FAULT_MEMORY))
        return EAGAIN;
    const int failed = __real_pthread_create(thread, attributes, body, context);
    faults.threads += !failed;
    return failed;
}

int __wrap_pthread_join(pthread_t thread, void **result) {
    const int failed = __real_pthread_join(thread, result);
    faults.threads -= !failed;
    return failed;
}

int __wrap_pthread_timedjoin_np(pthread_t thread, void **result, const struct timespec *deadline) {
    const int failed = __real_pthread_timedjoin_np(thread, result, deadline);
    faults.threads -= !failed;
    return failed;
}

/* ---- files ---- */

int __real_open(const char *path, int flags, ...);
int __real_fcntl(int fd, int command, ...);
FILE *__real_fopen(const char *path, const char *mode);
ssize_t __real_pread(int fd, void *to, size_t length, off_t offset);
long __real_syscall(long number, ...);

int __wrap_open(const char *path, int flags, ...) { /* the core creates no files */
    return fault("open", FAULT_FILE) ? -1 : __real_open(path, flags);
}

int __wrap_fcntl(int fd, int command, ...) { /* the core copies descriptors, from 0 on */
    return fault("fcntl", FAULT_FILE) ? -1 : __real_fcntl(fd, command, 0);
}

FILE *__wrap_fopen(const char *path, const char *mode) {
    return fault("fopen", FAULT_FILE) ? NULL : __real_fopen(path, mode);
}

ssize_t __wrap_pread(int fd, void *to, size_t length, off_t offset) {
    return fault("pread", FAULT_FILE) ? -1 : __real_pread(fd, to, length, offset);
}

/* Takes its arguments as fixed ones: of a variable list it may not ask for more than were given. */
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f) {
    if (number == SYS_io_uring_setup && fault("io_uring_setup", FAULT_URING))
        return -1;
    return __real_syscall(number, a, b, c, d, e, f);
}

#endif
