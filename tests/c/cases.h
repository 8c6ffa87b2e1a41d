/* What the tests of kernels share: numbers that are the same on every run, memory that faults just
 * past its end or before its start, and one count of cases for each row of kernels.def. */
#ifndef MMRT_TESTS_CASES_H
#define MMRT_TESTS_CASES_H

#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The largest relative error of one rounding to float32. */
#define ROUNDING 0x1p-24

static uint64_t random_state = 1;

static inline uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline size_t random_below(size_t n) {
    return (size_t)(next_random() % n);
}

static inline float random_unit(void) { /* -1 to 1 */
    return (float)((double)(next_random() >> 11) * 0x1p-52 - 1);
}

static inline void *checked(void *memory) {
    if (!memory || memory == MAP_FAILED) {
        perror("memory for the tests");
        exit(2);
    }
    return memory;
}

/* Whether to run the next case: with an argument N of the program only every Nth is, for where all
 * take too long. */
static size_t case_step = 1;

static inline void take_cases(int argc, char **argv) {
    if (argc > 1)
        case_step = strtoul(argv[1], NULL, 10);
}

static inline bool case_taken(void) {
    static size_t n;
    return n++ % case_step == 0;
}

/* Whole pages between two that may not be touched. */
struct guarded {
    unsigned char *begin, *end;
};

static inline struct guarded guarded_pages(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = (bytes + page - 1) / page * page;
    unsigned char *at =
        checked(mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mprotect(at + page, room, PROT_READ | PROT_WRITE) != 0)
        checked(NULL);
    return (struct guarded){at + page, at + page + room};
}

static inline void guarded_free(struct guarded g) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(g.begin - page, (size_t)(g.end - g.begin) + 2 * page);
}

/* A failed case is described in full; the first few tell enough. */
__attribute__((format(printf, 1, 2))) static inline void case_failed(const char *format, ...) {
    enum { SHOWN = 40 };
    va_list values;
    va_start(values, format);
    if (check_failures < SHOWN) {
        vfprintf(stderr, format, values);
        fputc('\n', stderr);
    }
    va_end(values);
    check_failures++;
}

#endif
