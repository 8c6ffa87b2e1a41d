/* Mapping byte ranges: of files, or of memory of their own. */
#define _GNU_SOURCE
#include "map/mapping.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static const struct flag {
    const char *word;
    int flag;
} flags[] = {
#define MMRT_MAP_FLAG(name, word, flag) {word, flag},
#include "map/flags.def"
#undef MMRT_MAP_FLAG
};

const char *mmrt_map_flag_name(mmrt_map_flag flag) {
    return flags[flag].word;
}

/* ---- the file ------------------------------------------------------------------------------ */

static const char *kind_of(mode_t mode) {
    if (S_ISDIR(mode))
        return "a directory";
    if (S_ISFIFO(mode))
        return "a FIFO";
    if (S_ISSOCK(mode))
        return "a socket";
    return "a device";
}

/* To all but the owner and those who may write the file, mincore() calls every page resident. */
static bool mincore_is_truthful(int fd, const struct stat *status) {
    if (status->st_uid == geteuid())
        return true;
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return faccessat(AT_FDCWD, link, W_OK, AT_EACCESS) == 0;
}

static mmrt_status check_file(const char *name, int fd, const struct stat *status,
                              mmrt_error *err) {
    if (!S_ISREG(status->st_mode)) {
        errno = S_ISDIR(status->st_mode) ? EISDIR : ENODEV;
        return mmrt_fail_errno(err, "cannot map '%s', which is %s and not a regular file", name,
                               kind_of(status->st_mode));
    }
    char byte;
    if (status->st_size == 0 && pread(fd, &byte, 1, 0) == 1)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "%s: it has no size, as it is made while it is read (as files of /proc "
                         "are): nothing can be mapped; copy it",
                         name);
    if (status->st_size == 0)
        return mmrt_fail(err, MMRT_FORMAT, "%s: the file is empty", name);
    if ((uint64_t)status->st_size > SIZE_MAX)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "%s: %lld bytes do not fit this address space",
                         name, (long long)status->st_size);
    return MMRT_OK;
}

/* Bytes of a huge page of hugetlbfs, where the file lies on one; else 0. */
static uint64_t huge_page_of(int fd) {
    enum { HUGETLBFS = 0x958458f6 };
    struct statfs system;
    return fstatfs(fd, &system) == 0 && (uint32_t)system.f_type == (uint32_t)HUGETLBFS
               ? (uint64_t)system.f_bsize
               : 0;
}

/* Bytes of a huge page of the kind that MAP_HUGETLB takes; 0 where there is none. */
static mmrt_status find_huge_page(uint64_t *bytes, mmrt_error *err) {
    unsigned long long kilobytes = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file)
        return mmrt_fail_errno(err, "cannot read '/proc/meminfo'");
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Hugepagesize: %llu kB", &kilobytes) == 1)
            break;
    fclose(file);
    *bytes = kilobytes << 10;
    return MMRT_OK;
}

/* Fills in what the file says, and the length where none was asked for. */
static mmrt_status open_file(const mmrt_map_request *request, mmrt_mapping *mapping,
                             mmrt_error *err) {
    const bool shared = !(request->flags & 1 << MMRT_MAP_PRIVATE);
    const int access = request->writable && shared ? O_RDWR : O_RDONLY;
    /* O_NONBLOCK: a FIFO is refused below instead of waited for; regular files ignore it. */
    const int fd = request->fd < 0 ? open(request->path, access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
                                   : fcntl(request->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return mmrt_fail_errno(err, "cannot open '%s'", mapping->name);

    struct stat file = {0};
    const bool examined = fstat(fd, &file) == 0;
    mmrt_file_init(&mapping->file, fd, access, &file);
    if (!examined)
        return mmrt_fail_errno(err, "cannot examine '%s'", mapping->name);
    mmrt_status status = check_file(mapping->name, fd, &file, err);
    if (status != MMRT_OK)
        return status;
    const uint64_t size = (uint64_t)file.st_size;
    if (mapping->offset >= size || mapping->size > size - mapping->offset)
        return mmrt_fail(err, MMRT_ARGUMENT, "%s: %llu bytes from %llu lie outside its %llu bytes",
                         mapping->name, (unsigned long long)mapping->size,
                         (unsigned long long)mapping->offset, (unsigned long long)size);
    if (!mapping->size)
        mapping->size = size - mapping->offset;
    mapping->modified_ns = (int64_t)file.st_mtim.tv_sec * 1000000000 + file.st_mtim.tv_nsec;
    mapping->truthful = mincore_is_truthful(fd, &file);
    const uint64_t huge = huge_page_of(fd);
    mapping->unit = huge ? huge : mapping->page;
    return MMRT_OK;
}

static mmrt_status prepare_memory(const mmrt_map_request *request, mmrt_mapping *mapping,
                                  mmrt_error *err) {
    if (!mapping->size || mapping->offset)
        return mmrt_fail(err, MMRT_ARGUMENT, "memory without a file needs a length, and no offset");
    mapping->truthful = true;
    if (request->flags & 1 << MMRT_MAP_HUGEPAGES) {
        mmrt_status status = find_huge_page(&mapping->unit, err);
        if (status != MMRT_OK)
            return status;
        if (!mapping->unit)
            return mmrt_fail(err, MMRT_UNSUPPORTED, "this kernel has no huge pages to reserve");
    }
    return MMRT_OK;
}

/* ---- mapping ------------------------------------------------------------------------------- */

static mmrt_status check_request(const mmrt_map_request *request, uint64_t page, mmrt_error *err) {
    const bool file = request->path || request->fd >= 0;
    if (request->flags >> MMRT_MAP_FLAG_COUNT)
        return mmrt_fail(err, MMRT_ARGUMENT, "flags: %#x holds unknown ones", request->flags);
    if (request->flags & 1 << MMRT_MAP_SHARED && request->flags & 1 << MMRT_MAP_PRIVATE)
        return mmrt_fail(err, MMRT_ARGUMENT, "a mapping is either shared or private, not both");
    if (request->flags & 1 << MMRT_MAP_ANONYMOUS && file)
        return mmrt_fail(err, MMRT_ARGUMENT, "an anonymous mapping has no file");
    if (request->offset % page)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "offset: %llu is not a multiple of the page size, %llu",
                         (unsigned long long)request->offset, (unsigned long long)page);
    if (request->address % page)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "address: %#llx is not a multiple of the page size, %llu",
                         (unsigned long long)request->address, (unsigned long long)page);
    return MMRT_OK;
}

static mmrt_status cannot_map(const mmrt_map_request *request, const mmrt_mapping *mapping,
                              mmrt_error *err) {
    const char *name = mapping->name ? mapping->name : "memory";
    if (errno == ENOMEM && mapping->unit != mapping->page)
        return mmrt_fail(err, MMRT_NO_MEMORY,
                         "%s: %llu bytes are more than the free huge pages hold: root reserves "
                         "them with vm.nr_hugepages",
                         name, (unsigned long long)mapping->size);
    if (errno == ENOMEM)
        return mmrt_fail(err, MMRT_NO_MEMORY, "no address space to map the %llu bytes of %s",
                         (unsigned long long)mapping->size, name);
    if (request->flags & 1 << MMRT_MAP_LOCKED && (errno == EAGAIN || errno == EPERM))
        return mmrt_fail_locking(mapping->size, err);
    if (errno == EINVAL && request->flags & 1 << MMRT_MAP_HUGEPAGES)
        return mmrt_fail(err, MMRT_ARGUMENT,
                         "%s: the flag hugepages is for memory without a file, or on hugetlbfs",
                         name);
    if (errno == ENODEV)
        return mmrt_fail_errno(err, "cannot map '%s': its file system maps no files like this",
                               name);
    return mmrt_fail_errno(err, "cannot map '%s'", name);
}

static mmrt_status map(const mmrt_map_request *request, mmrt_mapping *mapping, mmrt_error *err) {
    const int fd = atomic_load(&mapping->file.fd);
    int bits = 0;
    for (int i = 0; i < MMRT_MAP_FLAG_COUNT; i++)
        if (request->flags & 1u << i)
            bits |= flags[i].flag;
    if (fd < 0)
        bits |= MAP_ANONYMOUS;
    const bool free_to_choose = !(bits & (MAP_SHARED | MAP_PRIVATE));
    if (free_to_choose)
        bits |= fd < 0 ? MAP_PRIVATE : MAP_SHARED;
    const int protection = PROT_READ | (mapping->writable ? PROT_WRITE : 0);
    void *const address = (void *)(uintptr_t)request->address;
    const size_t length = (size_t)mmrt_mapped_bytes(mapping);
    void *data = mmap(address, length, protection, bits, fd, (off_t)mapping->offset);
    /* Some file systems (of FUSE with direct I/O, 9p) map no file shared; of one that is only read,
     * a private mapping shows the same. */
    if (data == MAP_FAILED && (errno == ENODEV || errno == EINVAL) && free_to_choose &&
        !mapping->writable)
        data = mmap(address, length, protection, (bits & ~MAP_SHARED) | MAP_PRIVATE, fd,
                    (off_t)mapping->offset);
    if (data == MAP_FAILED)
        return cannot_map(request, mapping, err);
    mapping->data = data;
    mmrt_file_settle(&mapping->file);
    const bool may_fail = mapping->has_file || mapping->unit != mapping->page;
    return may_fail ? mmrt_guard_begin(mapping, err) : MMRT_OK;
}

mmrt_status mmrt_mapping_create(const mmrt_map_request *request, mmrt_mapping **out,
                                mmrt_error *err) {
    *out = NULL;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    mmrt_status status = check_request(request, page, err);
    if (status != MMRT_OK)
        return status;
    const bool file = request->path || request->fd >= 0;
    mmrt_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping)
        *mapping = (mmrt_mapping){.has_file = file,
                                  .file = {.fd = -1},
                                  .size = request->length,
                                  .offset = request->offset,
                                  .page = page,
                                  .unit = page,
                                  .writable = request->writable};
    if (mapping && file)
        mapping->name = strdup(request->path ? request->path : "a descriptor");
    if (!mapping || (file && !mapping->name)) {
        free(mapping);
        return mmrt_fail(err, MMRT_NO_MEMORY, "no memory for a mapping");
    }
    status = file ? open_file(request, mapping, err) : prepare_memory(request, mapping, err);
    if (status == MMRT_OK)
        status = map(request, mapping, err);
    if (status != MMRT_OK) {
        mmrt_mapping_close(mapping);
        return status;
    }
    *out = mapping;
    return MMRT_OK;
}

mmrt_status mmrt_mapping_open(const char *path, mmrt_mapping **out, mmrt_error *err) {
    return mmrt_mapping_create(&(mmrt_map_request){.path = path, .fd = -1}, out, err);
}

void mmrt_mapping_close(mmrt_mapping *mapping) {
    if (!mapping)
        return;
    mmrt_guard_end(mapping);
    if (mapping->data)
        munmap(mapping->data, (size_t)mmrt_mapped_bytes(mapping));
    mmrt_file_close(&mapping->file);
    free(mapping->name);
    free(mapping);
}

mmrt_status mmrt_mapping_flush(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                               mmrt_error *err) {
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK || length == 0)
        return status;
    mmrt_pages range = mmrt_pages_touched(mapping, offset, length);
    if (msync(mapping->data + range.start, (size_t)range.length, MS_SYNC) != 0)
        return mmrt_fail_errno(err, "cannot write pages back");
    return MMRT_OK;
}

int mmrt_mapping_fd(mmrt_mapping *mapping) {
    return mmrt_file_keep(&mapping->file);
}

bool mmrt_mapping_file(const mmrt_mapping *mapping, uint64_t *device, uint64_t *inode) {
    *device = mapping->file.device;
    *inode = mapping->file.inode;
    return mapping->has_file;
}

void *mmrt_mapping_data(const mmrt_mapping *mapping) {
    return mapping->data;
}

uint64_t mmrt_mapping_size(const mmrt_mapping *mapping) {
    return mapping->size;
}

uint64_t mmrt_mapping_page_size(const mmrt_mapping *mapping) {
    return mapping->page;
}

int64_t mmrt_mapping_modified_ns(const mmrt_mapping *mapping) {
    return mapping->modified_ns;
}
