#define _GNU_SOURCE
#include "map/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Descriptors that mappings keep. */
static atomic_int n_kept;

static bool is_same(const struct mmrt_file *file, const struct stat *status) {
    return status->st_dev == file->device && status->st_ino == file->inode;
}

/* Half of what the process may open is others'. */
static bool too_many_kept(void) {
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
           (rlim_t)atomic_load(&n_kept) > limit.rlim_cur / 2;
}

/* The path that leads to the file now; NULL if none does. */
static char *path_of(const struct mmrt_file *file, int fd) {
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    struct stat status;
    if (length <= 0 || path[0] != '/')
        return NULL;
    path[length] = '\0';
    return stat(path, &status) == 0 && is_same(file, &status) ? strdup(path) : NULL;
}

void mmrt_file_init(struct mmrt_file *file, int fd, int access, const struct stat *status) {
    file->access = access;
    file->device = status->st_dev;
    file->inode = status->st_ino;
    atomic_store(&file->fd, fd);
    atomic_fetch_add(&n_kept, 1);
}

static void let_go(struct mmrt_file *file) {
    const int fd = atomic_exchange(&file->fd, -1);
    if (fd >= 0) {
        atomic_fetch_sub(&n_kept, 1);
        close(fd);
    }
}

void mmrt_file_settle(struct mmrt_file *file) {
    const int fd = atomic_load(&file->fd);
    if (fd >= 0 && too_many_kept() && (file->path = path_of(file, fd)))
        let_go(file);
}

void mmrt_file_close(struct mmrt_file *file) {
    let_go(file);
    free(file->path);
    file->path = NULL;
}

int mmrt_file_borrow(struct mmrt_file *file) {
    int fd = atomic_load(&file->fd);
    if (fd >= 0 || !file->path)
        return fd;
    fd = open(file->path, file->access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat status;
    if (fd >= 0 && (fstat(fd, &status) != 0 || !is_same(file, &status))) {
        close(fd);
        errno = ESTALE; /* another file has the path */
        return -1;
    }
    return fd;
}

void mmrt_file_return(struct mmrt_file *file, int fd) {
    if (fd >= 0 && fd != atomic_load(&file->fd))
        close(fd);
}

int mmrt_file_keep(struct mmrt_file *file) {
    const int fd = mmrt_file_borrow(file);
    int none = -1;
    if (fd < 0 || atomic_load(&file->fd) == fd)
        return fd;
    if (atomic_compare_exchange_strong(&file->fd, &none, fd)) {
        atomic_fetch_add(&n_kept, 1);
        return fd;
    }
    close(fd); /* another thread was faster */
    return none;
}

bool mmrt_file_size(const struct mmrt_file *file, uint64_t *size) {
    const int fd = atomic_load(&file->fd);
    struct stat status;
    if (fd >= 0 ? fstat(fd, &status) != 0
                : !file->path || stat(file->path, &status) != 0 || !is_same(file, &status))
        return false;
    *size = (uint64_t)status.st_size;
    return true;
}
