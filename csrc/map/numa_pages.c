/* On which node each mapped page lies, and moving pages. */
#define _GNU_SOURCE
#include "map/numa.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Pages asked about in one system call. */
enum { BATCH = 1024 };

static uintptr_t page_size(void) {
    return (uintptr_t)sysconf(_SC_PAGESIZE);
}

static const char *page_of(const void *address) {
    return (const char *)address - (uintptr_t)address % page_size();
}

uint64_t mmrt_numa_n_pages(const void *start, uint64_t length) {
    const uintptr_t page = page_size();
    return length ? ((uintptr_t)start % page + length + page - 1) / page : 0;
}

/* The nodes of up to BATCH pages, negative for a page that is not mapped. */
static mmrt_status ask(const char *first_page, uint64_t n, int *nodes, mmrt_error *err) {
    const void *pages[BATCH];
    const uintptr_t page = page_size();
    for (uint64_t i = 0; i < n; i++)
        pages[i] = first_page + i * page;
    if (syscall(SYS_move_pages, 0, n, pages, NULL, nodes, 0) != 0)
        return mmrt_numa_refused("asking where pages lie", err);
    return MMRT_OK;
}

mmrt_status mmrt_numa_pages(const void *start, uint64_t length, int16_t *nodes, mmrt_error *err) {
    const uint64_t n_pages = mmrt_numa_n_pages(start, length);
    for (uint64_t done = 0; done < n_pages; done += BATCH) {
        const uint64_t n = n_pages - done < BATCH ? n_pages - done : BATCH;
        int found[BATCH];
        mmrt_status status = ask(page_of(start) + done * page_size(), n, found, err);
        if (status)
            return status;
        for (uint64_t i = 0; i < n; i++)
            nodes[done + i] = found[i] >= 0 ? (int16_t)found[i] : -1;
    }
    return MMRT_OK;
}

/* Moves those of up to BATCH pages that lie on another node and counts them; the kernel leaves
 * pages that other processes map too, or that are in use just now. */
static mmrt_status move_strays(const char *first_page, uint64_t n, int node, const int *found,
                               uint64_t *n_strays, mmrt_error *err) {
    const void *strays[BATCH];
    int wanted[BATCH], results[BATCH];
    const int move_own = 1 << 1; /* MPOL_MF_MOVE */
    *n_strays = 0;
    for (uint64_t i = 0; i < n; i++)
        if (found[i] >= 0 && found[i] != node) {
            strays[*n_strays] = first_page + i * page_size();
            wanted[(*n_strays)++] = node;
        }
    if (*n_strays && syscall(SYS_move_pages, 0, *n_strays, strays, wanted, results, move_own) < 0 &&
        errno != ENOENT) /* gone meanwhile */
        return mmrt_numa_refused("moving pages", err);
    return MMRT_OK;
}

mmrt_status mmrt_numa_move(const void *start, uint64_t length, int node, uint64_t *n_there,
                           uint64_t *n_elsewhere, mmrt_error *err) {
    const uint64_t n_pages = mmrt_numa_n_pages(start, length);
    for (uint64_t done = 0; done < n_pages; done += BATCH) {
        const uint64_t n = n_pages - done < BATCH ? n_pages - done : BATCH;
        const char *first_page = page_of(start) + done * page_size();
        uint64_t n_strays;
        int found[BATCH];
        mmrt_status status = ask(first_page, n, found, err);
        if (!status)
            status = move_strays(first_page, n, node, found, &n_strays, err);
        if (!status && n_strays)
            status = ask(first_page, n, found, err);
        if (status)
            return status;
        for (uint64_t i = 0; i < n; i++) {
            *n_there += found[i] == node;
            *n_elsewhere += found[i] >= 0 && found[i] != node;
        }
    }
    return MMRT_OK;
}
