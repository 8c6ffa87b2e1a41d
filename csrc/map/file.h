/* The file of a mapping: a descriptor, or enough to open it again.
 *
 * A mapping outlives its descriptor, which only tells how long the file is, whatever becomes of its
 * name, and serves eviction and streaming. So mappings keep theirs up to half of what the process
 * may open; a model of more parts leaves the rest to others, and files are opened again by path
 * when they are needed, if the path still leads to them. */
#ifndef MMRT_MAP_FILE_H
#define MMRT_MAP_FILE_H

#include "mmrt.h"

#include <stdatomic.h>
#include <sys/stat.h>

struct mmrt_file {
    atomic_int fd; /* -1: let go, or there is no file */
    char *path;    /* from the root; NULL: not let go */
    int access;    /* O_RDONLY or O_RDWR */
    dev_t device;
    ino_t inode;
};

/* Takes the descriptor over. */
void mmrt_file_init(struct mmrt_file *file, int fd, int access, const struct stat *status);
void mmrt_file_close(struct mmrt_file *file);

/* Lets the descriptor go if mappings keep too many, and a path leads to the file. */
void mmrt_file_settle(struct mmrt_file *file);

/* A descriptor, to be handed back; -1, with errno, if it cannot be opened again. */
int mmrt_file_borrow(struct mmrt_file *file);
void mmrt_file_return(struct mmrt_file *file, int fd);

/* The same to be kept until the file is closed. */
int mmrt_file_keep(struct mmrt_file *file);

/* How long the file is now; false if nobody can tell. Safe in a signal handler. */
bool mmrt_file_size(const struct mmrt_file *file, uint64_t *size);

#endif
