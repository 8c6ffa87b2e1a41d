/* The part of mmrt.h that knows machines and files: status codes, the processor, threads, mappings,
 * memory nodes, GGUF directories. */
#ifndef MMRT_FILES_H
#define MMRT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- status (base/) ------------------------------------------------------------------------ */

typedef enum mmrt_status {
#define MMRT_STATUS(name, meaning) MMRT_##name,
#include "base/status.def"
#undef MMRT_STATUS
} mmrt_status;

typedef struct mmrt_error {
    mmrt_status status;
    int os_errno; /* errno of the failed system call, else 0 */
    char message[480];
} mmrt_error;

/* A long-running function calls this now and then, on its caller's thread; a result other than 0
 * ends the function with INTERRUPTED. */
typedef int mmrt_poll_fn(void *context);

/* ---- processor (base/) --------------------------------------------------------------------- */

typedef enum mmrt_isa {
#define MMRT_ISA(id, name) MMRT_ISA_##id,
#include "base/isa.def"
#undef MMRT_ISA
    MMRT_ISA_COUNT
} mmrt_isa;

const char *mmrt_isa_name(mmrt_isa isa);

/* NULL if kernels of this instruction set can run here, else why not. */
const char *mmrt_isa_missing(mmrt_isa isa);

/* The best set that can run here, or the one that the environment variable MMRT_ISA forces:
 * UNSUPPORTED if that one cannot run here, ARGUMENT if there is none of that name. */
mmrt_status mmrt_isa_choose(mmrt_isa *out, mmrt_error *err);

/* The CPUs that this process may use: its affinity mask, which cpusets bound, cut to the tightest
 * quota of the cgroups around it, to the nearest whole one; >= 1. */
int mmrt_cpu_count(void);

/* The folder of a cgroup, and how much of its path is that of the mount: the outermost group that
 * can be seen. */
typedef struct mmrt_cgroup {
    char path[4096];
    size_t top;
} mmrt_cgroup;

/* The process' own cgroup of a controller ("cpu", "memory"), in the hierarchy of version 1 or 2 of
 * the interface; false if there is none. groups, mounts: the process' /proc/self/cgroup and
 * /proc/self/mountinfo. Version 2 has one hierarchy for all controllers. */
bool mmrt_cgroup_find(const char *controller, int version, const char *groups, const char *mounts,
                      mmrt_cgroup *out);

/* Goes to the group around it; false at the outermost. */
bool mmrt_cgroup_up(mmrt_cgroup *group);

/* The tightest quota of CPU time among the groups around the process, in CPUs; 0: none. */
double mmrt_cgroup_cpus(const char *groups, const char *mounts);

/* A set of CPUs or of memory nodes: bit i % 64 of bits[i / 64] stands for number i. Laid out as the
 * system's own sets are. */
#define MMRT_SET_LIMIT 1024

typedef struct mmrt_set {
    uint64_t bits[MMRT_SET_LIMIT / 64];
} mmrt_set;

static inline void mmrt_set_add(mmrt_set *set, int i) {
    set->bits[i / 64] |= UINT64_C(1) << i % 64;
}

static inline bool mmrt_set_has(const mmrt_set *set, int i) {
    return i >= 0 && i < MMRT_SET_LIMIT && (set->bits[i / 64] >> i % 64 & 1);
}

static inline int mmrt_set_count(const mmrt_set *set) {
    int n = 0;
    for (int word = 0; word < MMRT_SET_LIMIT / 64; word++)
        n += __builtin_popcountll(set->bits[word]);
    return n;
}

static inline mmrt_set mmrt_set_both(const mmrt_set *a, const mmrt_set *b) {
    mmrt_set both;
    for (int word = 0; word < MMRT_SET_LIMIT / 64; word++)
        both.bits[word] = a->bits[word] & b->bits[word];
    return both;
}

/* The CPUs that the calling thread may run on: empty if the system does not say. */
mmrt_set mmrt_cpu_affinity(void);

/* Gives memory that was freed, but is kept for reuse, back to the system where the C library can.
 */
void mmrt_trim_heap(void);

/* ---- system calls (base/) ------------------------------------------------------------------- */

typedef enum mmrt_call {
#define MMRT_CALL(name, word, number, since) MMRT_CALL_##name,
#include "base/calls.def"
#undef MMRT_CALL
    MMRT_CALL_COUNT
} mmrt_call;

const char *mmrt_call_name(mmrt_call call);
const char *mmrt_call_since(mmrt_call call); /* the Linux that first had it */

/* OK if the kernel offers it to this process, UNSUPPORTED if it has none such, IO if it is
 * forbidden. */
mmrt_status mmrt_call_probe(mmrt_call call);

/* ---- threads (base/) ----------------------------------------------------------------------- */

/* Persistent threads that run one job together; the caller is one of them. */
typedef struct mmrt_pool mmrt_pool;

#define MMRT_MAX_THREADS 256

/* n_threads counts the caller: 1 to MMRT_MAX_THREADS. After a fork the pool starts new threads at
 * its next job. One job at a time: callers queue. */
mmrt_status mmrt_pool_create(int n_threads, mmrt_pool **out, mmrt_error *err);
void mmrt_pool_free(mmrt_pool *pool);
int mmrt_pool_threads(const mmrt_pool *pool);

/* From now on thread i runs on the CPUs cpus[i], one set for each thread: the others all the time,
 * the caller (thread 0) while it takes part in a job. Also after a fork. ARGUMENT, and all as
 * before, if this thread may not run on a set. */
mmrt_status mmrt_pool_bind(mmrt_pool *pool, const mmrt_set *cpus, mmrt_error *err);

/* ---- mapped files (map/) ------------------------------------------------------------------- */

typedef struct mmrt_mapping mmrt_mapping;

typedef enum mmrt_map_flag {
#define MMRT_MAP_FLAG(name, word, flag) MMRT_MAP_##name,
#include "map/flags.def"
#undef MMRT_MAP_FLAG
    MMRT_MAP_FLAG_COUNT
} mmrt_map_flag;

const char *mmrt_map_flag_name(mmrt_map_flag flag);

/* What to map: mmap()'s arguments. */
typedef struct mmrt_map_request {
    const char *path; /* opened if fd is -1; with an fd, its name for messages */
    int fd;           /* copied; -1: none. Without path and fd the memory is its own, all zeros */
    uint64_t offset;  /* in the file; a multiple of the page size */
    uint64_t length;  /* 0: to the end of the file */
    uint64_t address; /* where one would like it, or 0; a multiple of the page size */
    bool writable;
    uint32_t flags; /* 1 << MMRT_MAP_...; unless said, files are shared and other memory private */
} mmrt_map_request;

/* Maps a regular file, or a part of it, reading none of it unless asked to; or memory.
 *
 * FORMAT for an empty file; IO for a directory, FIFO or device (without waiting for it) and where
 * the system refuses; ARGUMENT for a range outside the file, misalignment and flags that exclude
 * each other; NO_MEMORY without address space, reserved huge pages or, for LOCKED, the right to
 * lock as much.
 *
 * Where a file is cut short later, or its disk fails, its missing bytes read as zeros: no signal
 * ends the process. After reading, call mmrt_mapping_check() to learn whether every byte was there.
 * This needs a handler for SIGBUS, which is installed here; signals that are not about mapped files
 * go to the handler that was there before. */
mmrt_status mmrt_mapping_create(const mmrt_map_request *request, mmrt_mapping **out,
                                mmrt_error *err);

/* The same for a whole file, read-only. */
mmrt_status mmrt_mapping_open(const char *path, mmrt_mapping **out, mmrt_error *err);
void mmrt_mapping_close(mmrt_mapping *mapping);

/* The mapping's own descriptor; -1: there is no file. Where mappings would keep more than half of
 * the descriptors that the process may have, it is opened again by path now: -1, with errno, if
 * that does not lead to the file any more. */
int mmrt_mapping_fd(mmrt_mapping *mapping);

/* What identifies the file; false: there is none. */
bool mmrt_mapping_file(const mmrt_mapping *mapping, uint64_t *device, uint64_t *inode);
void *mmrt_mapping_data(const mmrt_mapping *mapping);
uint64_t mmrt_mapping_size(const mmrt_mapping *mapping);       /* bytes */
uint64_t mmrt_mapping_page_size(const mmrt_mapping *mapping);  /* bytes */
int64_t mmrt_mapping_modified_ns(const mmrt_mapping *mapping); /* the file's mtime at opening */

/* Puts the handler in front again if another has replaced it. To be called before reading begins:
 * creating mappings and running programs do. One system call if nothing has changed. */
void mmrt_guard_renew(void);

/* IO, naming the file and a byte that is missing, if bytes [offset, offset + length) are not all in
 * the file any more, or if any byte of the mapping was found missing when it was touched: from then
 * on all of the mapping may hold zeros. A length of 0 asks for the latter alone and costs nothing;
 * the rest costs a system call. *gone (may be NULL): that byte, from the mapping's start. */
mmrt_status mmrt_mapping_check(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                               uint64_t *gone, mmrt_error *err);

/* The same for bytes at an address: OK if these are in no mapping. The mapping that they are in
 * must not be closed during the call. */
mmrt_status mmrt_bytes_check(const void *bytes, uint64_t length, mmrt_error *err);

/* Whether a byte was found missing, and no check has said so yet. */
bool mmrt_mapping_unreported(const mmrt_mapping *mapping);

/* Returns when what was written to the pages that the range touches is on the disk. */
mmrt_status mmrt_mapping_flush(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                               mmrt_error *err);

typedef enum mmrt_advice {
#define MMRT_ADVICE(name, word, number, pages, since, needs) MMRT_ADVICE_##name,
#include "map/advice.def"
#undef MMRT_ADVICE
    MMRT_ADVICE_COUNT
} mmrt_advice;

const char *mmrt_advice_name(mmrt_advice advice);
const char *mmrt_advice_since(mmrt_advice advice); /* the first Linux that could know it */
bool mmrt_advice_known(mmrt_advice advice);        /* by this kernel */

/* Advises on bytes [offset, offset + length): madvise(), with two additions. WILLNEED starts
 * reading exactly the range, where the kernel would read no more of it than the disk's read-ahead;
 * it waits only for a full disk queue. EVICT unmaps pages here and asks the page cache to drop
 * them. The page cache keeps what another process maps or has locked, or has not yet written back:
 * residency says what came of it. UNSUPPORTED for advice that the kernel does not know, ARGUMENT
 * for advice that this mapping cannot take. */
mmrt_status mmrt_mapping_advise(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_advice advice, mmrt_error *err);

typedef enum mmrt_file_advice {
#define MMRT_FILE_ADVICE(name, word, number, pages) MMRT_FILE_ADVICE_##name,
#include "map/file_advice.def"
#undef MMRT_FILE_ADVICE
    MMRT_FILE_ADVICE_COUNT
} mmrt_file_advice;

const char *mmrt_file_advice_name(mmrt_file_advice advice);

/* Advises on the same bytes of the file: posix_fadvise() and readahead(). READAHEAD and WILLNEED
 * are asked for in pieces, as above. NORMAL, SEQUENTIAL, RANDOM and NOREUSE hold for the descriptor
 * whatever the range, and so for faults of this mapping; one that was given as a descriptor shares
 * that with its giver. ARGUMENT for memory without a file. */
mmrt_status mmrt_mapping_advise_file(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                     mmrt_file_advice advice, mmrt_error *err);

/* mlock(), mlock2() and munlock() on every page that the range touches. Locking reads the range in;
 * on_fault: its pages are locked as they come instead (UNSUPPORTED before Linux 4.4). NO_MEMORY
 * where RLIMIT_MEMLOCK (often 8 MiB) does not allow it. Locks do not count: one unlock undoes all,
 * neighbours' on shared edge pages too. */
mmrt_status mmrt_mapping_lock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                              bool on_fault, mmrt_error *err);
mmrt_status mmrt_mapping_unlock(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_error *err);

/* The number of pages that bytes [offset, offset + length) touch. */
uint64_t mmrt_mapping_pages(const mmrt_mapping *mapping, uint64_t offset, uint64_t length);

/* Writes 1 or 0 to pages[i] for each of those pages: whether it is in the page cache (mincore).
 * The kernel tells the truth only to those who own or may write the file; *trusted says whether
 * that is so here: otherwise the flags come from /proc/self/pagemap and tell what this process has
 * mapped. */
mmrt_status mmrt_mapping_residency(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                   unsigned char *pages, bool *trusted, mmrt_error *err);

/* The same for what this process has mapped (/proc/self/pagemap), even where mincore()
 * could tell more. */
mmrt_status mmrt_mapping_mapped(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                unsigned char *pages, mmrt_error *err);

/* ---- memory nodes, NUMA (map/) ------------------------------------------------------------- */

#define MMRT_MAX_NODES 64

typedef struct mmrt_numa_node {
    int id;                        /* the kernel's number: there may be gaps */
    mmrt_set cpus;                 /* online; a node of memory alone has none */
    uint64_t total, free;          /* bytes of memory; 0 on a node of CPUs alone */
    int distances[MMRT_MAX_NODES]; /* to the topology's nodes[i]; 10 is local, 0 not known */
} mmrt_numa_node;

typedef struct mmrt_numa_topology {
    int n_nodes;
    mmrt_numa_node nodes[MMRT_MAX_NODES];
    mmrt_set allowed; /* nodes that have memory, which this process may use */
} mmrt_numa_topology;

/* Reads the online nodes from `root`, a folder laid out like /sys/devices/system/node (NULL: that
 * one). Without it there is one node, 0, with all CPUs and memory. FORMAT if it makes no sense,
 * UNSUPPORTED if there are more nodes than MMRT_MAX_NODES. */
mmrt_status mmrt_numa_topology_read(const char *root, mmrt_numa_topology *out, mmrt_error *err);

/* Where new pages come from; numbered as in the kernel. */
typedef enum mmrt_numa_mode {
    MMRT_NUMA_DEFAULT,             /* no policy: the node of the thread that touches a page */
    MMRT_NUMA_PREFERRED,           /* one node; others when that is full */
    MMRT_NUMA_BIND,                /* these nodes and no others */
    MMRT_NUMA_INTERLEAVE,          /* these nodes in turn, page by page */
    MMRT_NUMA_LOCAL,               /* as DEFAULT, also against a policy of the thread */
    MMRT_NUMA_PREFERRED_MANY,      /* these nodes, others when they are full; Linux 5.15 */
    MMRT_NUMA_WEIGHTED_INTERLEAVE, /* in turn, in proportion to
                                      /sys/kernel/mm/mempolicy/weighted_interleave; Linux 6.9 */
    MMRT_NUMA_MODE_COUNT
} mmrt_numa_mode;

const char *mmrt_numa_mode_name(mmrt_numa_mode mode); /* NULL: there is none of that number */

typedef struct mmrt_numa_policy {
    mmrt_numa_mode mode;
    mmrt_set nodes; /* DEFAULT and LOCAL: none; PREFERRED: one; the others: at least one */
    int flags;      /* 0, or what a policy that was read came with */
} mmrt_numa_policy;

/* The policy of the calling thread; threads that it starts inherit it. ARGUMENT for nodes that do
 * not fit or may not be used; UNSUPPORTED where the kernel does not know the policy or has no NUMA,
 * or a container forbids the call. */
mmrt_status mmrt_numa_set_policy(const mmrt_numa_policy *policy, mmrt_error *err);
mmrt_status mmrt_numa_get_policy(mmrt_numa_policy *out, mmrt_error *err);

/* The policy of the whole pages inside a range of memory (mbind), for pages to come; `move`: those
 * that are there are moved to suit it, unless other processes map them too. It holds for anonymous
 * memory and tmpfs. Mappings of other files take it too, and the page cache ignores it. */
mmrt_status mmrt_numa_bind(void *start, uint64_t length, const mmrt_numa_policy *policy, bool move,
                           mmrt_error *err);

/* The number of pages that `length` bytes from `start` touch, and the node of each: -1 for a page
 * that this process has not mapped, even if it is in the page cache. UNSUPPORTED where the kernel
 * has no NUMA or a container forbids the call. */
uint64_t mmrt_numa_n_pages(const void *start, uint64_t length);
mmrt_status mmrt_numa_pages(const void *start, uint64_t length, int16_t *nodes, mmrt_error *err);

/* Spreads the threads of a pool over the nodes, in runs and in proportion to the CPUs that this
 * process may use there, binds each to its node's CPUs, and writes the node of each to `nodes`.
 * With one node to choose from the threads stay free. */
mmrt_status mmrt_numa_bind_pool(mmrt_pool *pool, int *nodes, mmrt_error *err);

typedef struct mmrt_numa_range {
    uint64_t offset, length; /* bytes of the mapping */
    int node;                /* where they are to lie */
    uint64_t n_pages;        /* set by mmrt_numa_place: pages that the range touches, ... */
    uint64_t n_there;        /* ... those that lie there afterwards, ... */
    uint64_t n_elsewhere;    /* ... and on another node; the rest: the system did not say */
} mmrt_numa_range;

/* Brings the ranges of a mapped file into the memory of their nodes and maps them. Each node has a
 * thread of its own, because where that thread runs, and its policy, decide from which node the
 * page cache takes memory. Pages that lie elsewhere are moved, unless other processes map them too;
 * a page that two ranges touch goes to either. On machines of several nodes this turns read-ahead
 * off for the whole mapping, for good: a fault would read past the ranges' ends. ARGUMENT for
 * ranges outside the mapping and nodes that are not there, UNSUPPORTED before Linux 5.14, or where
 * a container forbids memory policies and no CPU of a node may be used. */
mmrt_status mmrt_numa_place(mmrt_mapping *mapping, mmrt_numa_range *ranges, size_t n,
                            mmrt_poll_fn *poll, void *poll_context, mmrt_error *err);

/* ---- GGUF directories (gguf/) -------------------------------------------------------------- */

typedef struct mmrt_gguf mmrt_gguf;

/* Called by a parser before it touches bytes [offset, offset + length) of the file, in rising order
 * of offsets: a chance to read just these. The windows grow from 64 KiB to 1 MiB, so that little
 * more than the header is announced. */
typedef void mmrt_reading(void *context, uint64_t offset, uint64_t length);

/* Types of metadata values, as numbered in the file. */
typedef enum mmrt_gguf_value_type {
    MMRT_GGUF_UINT8,
    MMRT_GGUF_INT8,
    MMRT_GGUF_UINT16,
    MMRT_GGUF_INT16,
    MMRT_GGUF_UINT32,
    MMRT_GGUF_INT32,
    MMRT_GGUF_FLOAT32,
    MMRT_GGUF_BOOL,
    MMRT_GGUF_STRING,
    MMRT_GGUF_ARRAY,
    MMRT_GGUF_UINT64,
    MMRT_GGUF_INT64,
    MMRT_GGUF_FLOAT64,
} mmrt_gguf_value_type;

/* One metadata entry. `data` points at the value's bytes in the file, already checked to lie in it
 * whole: a number (unaligned, little-endian), a string's u64 length and bytes, or an array's
 * elements one after another. */
typedef struct mmrt_gguf_entry {
    const char *key; /* UTF-8 without NUL, not terminated */
    uint64_t key_length;
    mmrt_gguf_value_type type;         /* ARRAY for an array */
    mmrt_gguf_value_type element_type; /* of an array; else equal to type */
    uint64_t count;                    /* elements of an array; else 1 */
    const unsigned char *data;
    uint64_t size; /* bytes at data */
} mmrt_gguf_entry;

typedef struct mmrt_gguf_tensor {
    const char *name; /* UTF-8 without NUL, not terminated */
    uint64_t name_length;
    uint32_t type;   /* an mmrt_type (quant/quant.h), or a number unknown to this version */
    uint32_t n_dims; /* 0 to 64 */
    const unsigned char *dims; /* in the file: see mmrt_gguf_dim() */
    uint64_t offset;           /* from the start of the file, bytes */
    uint64_t size; /* bytes; of an unknown type: up to the next tensor, or the file's end */
} mmrt_gguf_tensor;

/* Parses the header of the GGUF file whose bytes are [bytes, bytes + size), touching nothing but
 * the header, and calling reading(context, ...) before it does (NULL: no call). Everything is
 * bounds-checked before use and before any allocation; `path` is only for messages, which name the
 * field, its offset and what was found. The result points into `bytes`. String values may hold any
 * bytes; keys and names are text.
 *
 * FORMAT: wrong magic, version 0, counts and lengths that cannot fit, unknown value types, keys or
 * names that are not UTF-8 or occur twice, an alignment that is no power of two from 8 to 2^30,
 * tensors misaligned, of impossible shape, overlapping one another or past the end of the file.
 * UNSUPPORTED: versions other than 2 and 3, big-endian files, arrays within more than 16 others. */
mmrt_status mmrt_gguf_parse(const void *bytes, uint64_t size, const char *path,
                            mmrt_reading *reading, void *context, mmrt_gguf **out, mmrt_error *err);
void mmrt_gguf_free(mmrt_gguf *gguf);
uint32_t mmrt_gguf_version(const mmrt_gguf *gguf);
uint64_t mmrt_gguf_header_size(const mmrt_gguf *gguf); /* bytes before the first tensor's data */
uint64_t mmrt_gguf_n_entries(const mmrt_gguf *gguf);
uint64_t mmrt_gguf_n_tensors(const mmrt_gguf *gguf);
const mmrt_gguf_entry *mmrt_gguf_entry_at(const mmrt_gguf *gguf, uint64_t index);
const mmrt_gguf_tensor *mmrt_gguf_tensor_at(const mmrt_gguf *gguf, uint64_t index);
/* Elements along a dimension, in the file's order: of 0 it is the length of a row. Of those that
 * the tensor does not have it is 1. */
uint64_t mmrt_gguf_dim(const mmrt_gguf_tensor *tensor, uint32_t dimension);

#endif
