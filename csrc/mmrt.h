/* mmrt: a memory-mapped tensor runtime. The one header that callers outside csrc/ include.
 *
 * Who owns what: every `open`, `create` or `parse` hands out an opaque handle that the matching
 * `close` or `free` takes back (NULL is allowed there). Pointers into a handle live as long as it.
 * Every function that can fail returns an mmrt_status and, unless that is MMRT_OK, has filled the
 * mmrt_error that it was given (NULL: no message wanted). Nothing here aborts or prints.
 */
#ifndef MMRT_H
#define MMRT_H

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

/* Called now and then by the thread that called a function which takes long; anything but 0 ends
 * that with INTERRUPTED. */
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
 * ends the process. Who has read asks mmrt_mapping_check() whether all of it was there. For this a
 * handler for SIGBUS is put in place; signals that are not about mapped files go to the handler
 * that was there before. */
mmrt_status mmrt_mapping_create(const mmrt_map_request *request, mmrt_mapping **out,
                                mmrt_error *err);

/* The same for a whole file, read-only. */
mmrt_status mmrt_mapping_open(const char *path, mmrt_mapping **out, mmrt_error *err);
void mmrt_mapping_close(mmrt_mapping *mapping);

/* The mapping's own descriptor; -1: there is no file. Where mappings would keep more than half of
 * the descriptors that the process may have, it is opened again by path now: -1, with errno, if
 * that does not lead to the file any more. */
int mmrt_mapping_fd(mmrt_mapping *mapping);

/* What tells the file from others; false: there is none. */
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
 * must not be closed meanwhile. */
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

/* The same for what this process has mapped (/proc/self/pagemap), whoever may know more. */
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
 * that are there are moved to suit it, but for what other processes map too. It holds for anonymous
 * memory and tmpfs. Mappings of other files take it too, and the page cache ignores it. */
mmrt_status mmrt_numa_bind(void *start, uint64_t length, const mmrt_numa_policy *policy, bool move,
                           mmrt_error *err);

/* The number of pages that `length` bytes from `start` touch, and the node of each: -1 for a page
 * that this process has not mapped, be it in the page cache or not. UNSUPPORTED where the kernel
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

/* Brings the ranges of a mapped file into the memory of their nodes and maps them, a thread for
 * each node, for the page cache takes memory where the thread that reads a page in runs and as its
 * policy says. Pages that lie elsewhere are moved, but for those that other processes map too; a
 * page that two ranges touch goes to either. On machines of several nodes this turns read-ahead off
 * for the whole mapping, for good: a fault would read past the ranges' ends. ARGUMENT for ranges
 * outside the mapping and nodes that are not there, UNSUPPORTED before Linux 5.14, or where a
 * container forbids memory policies and no CPU of a node may be used. */
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
    uint32_t type;    /* an mmrt_type (quant/quant.h), or a number unknown to this version */
    uint32_t n_dims;  /* 0 to 4 */
    uint64_t dims[4]; /* file order: dims[0] is the row length; unused ones are 1 */
    uint64_t offset;  /* from the start of the file, bytes */
    uint64_t size;    /* bytes; of an unknown type: up to the next tensor, or the file's end */
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

/* ---- tensor types (quant/) ----------------------------------------------------------------- */

/* Writes n_elements float32 values from consecutive blocks of the type: exact, scalar.
 * ARGUMENT for an unknown type or a number of elements that is not whole blocks, UNSUPPORTED for a
 * type of which only the sizes are known. */
mmrt_status mmrt_dequantize(uint32_t type, const void *blocks, float *out, size_t n_elements,
                            mmrt_error *err);

/* ---- matrices (tools/) ---------------------------------------------------------------------- */

/* A matrix in file order: `rows` rows of `cols` elements, whole blocks of `type` each, one after
 * another from any address on. `name` is for messages and belongs to the caller. */
typedef struct mmrt_weight {
    const void *data;
    uint32_t type;
    uint64_t rows;
    uint64_t cols;
    const char *name;
    uint64_t stack; /* so many matrices of that shape follow one another; 0 is as 1 */
} mmrt_weight;

/* y[c * rows + r] = row r of w times column c of x, which is float32 [n][cols]; computed on all
 * threads of the pool. For quantised types x is rounded to int8 in groups of 32. IO if w is in a
 * mapped file that was cut short or cannot be read. */
mmrt_status mmrt_matmul(mmrt_pool *pool, mmrt_isa isa, const mmrt_weight *w, const float *x,
                        size_t n, float *y, mmrt_error *err);

/* What bounds the speed of a machine: bytes read in order, multiply-adds of bytes, and of floats.
 */
typedef enum mmrt_roof_kind { MMRT_ROOF_READ, MMRT_ROOF_INT8, MMRT_ROOF_FLOAT32 } mmrt_roof_kind;

/* Reads n bytes at data, or makes n multiply-adds, shared out among the pool's threads; *done is
 * how many it were. To be timed by the caller. */
mmrt_status mmrt_roof(mmrt_pool *pool, mmrt_isa isa, mmrt_roof_kind kind, const void *data,
                      uint64_t n, uint64_t *done, mmrt_error *err);

/* The set whose kernel multiplies matrices of this type when `isa` is chosen. */
mmrt_isa mmrt_matmul_isa(mmrt_isa isa, uint32_t type);

/* Writes rows [first, first + n_rows) of w to `blocks` as blocks of `type`, each as near to its
 * values as the type comes in the sense of least squares; computed on all threads of the pool, and
 * the same for any number of them. Rows are to be whole blocks of both types (else ARGUMENT).
 * UNSUPPORTED for a type that is not written here, or w's if it cannot be read; FORMAT, naming w
 * and the place, for a value that is NaN or larger than 65504, the largest of binary16. */
mmrt_status mmrt_quantize(mmrt_pool *pool, const mmrt_weight *w, uint64_t first, uint64_t n_rows,
                          uint32_t type, void *blocks, mmrt_error *err);

/* ---- sampling (sample/) -------------------------------------------------------------------- */

/* How a token is chosen, in this order: repetition penalty, presence and frequency penalty, top-k,
 * top-p, min-p, a draw at this temperature. mmrt/core/sampling.py has the formula of each. */
typedef struct mmrt_sampling {
    double temperature;       /* 0: the likeliest token, whatever the filters */
    uint32_t top_k;           /* 0: off */
    double top_p;             /* above 0; 1: off */
    double min_p;             /* 0: off */
    double repeat_penalty;    /* above 0; 1: off */
    double presence_penalty;  /* 0: off */
    double frequency_penalty; /* 0: off */
} mmrt_sampling;

typedef struct mmrt_alternative {
    int32_t token;
    float logprob;
} mmrt_alternative;

/* One choice: what it is made from, and what came of it. */
typedef struct mmrt_draw {
    mmrt_sampling sampling;
    const float *logits;   /* [vocabulary], left as they are */
    const uint32_t *mask;  /* bit i % 32 of word i / 32: whether token i is allowed. NULL: all */
    const int32_t *recent; /* [n_recent] tokens that penalties apply to, in any order */
    size_t n_recent;
    double uniform; /* in [0, 1): picks one of the candidates, which are in order of token id */
    bool wants_logprob;
    size_t n_alternatives; /* with wants_logprob: room in `alternatives`; then how many there are */
    mmrt_alternative *alternatives; /* the likeliest tokens, of equal ones the lower id first */
    int32_t token;                  /* the choice */
    float logprob; /* of the choice, by the model's own logits: without penalties, mask, filters and
                      temperature; so are those of the alternatives */
} mmrt_draw;

/* Chooses n_draws tokens on the pool's threads (NULL: on this one). The choices do not depend on
 * the threads. ARGUMENT if a logit is NaN, the largest is not finite, no token is allowed, or
 * `recent` has an id outside the vocabulary. */
mmrt_status mmrt_sample(mmrt_pool *pool, mmrt_isa isa, mmrt_draw *draws, size_t n_draws,
                        size_t vocabulary, mmrt_error *err);

/* What a draw is made from: the tokens that pass the filters, by rising id, and the probability of
 * each; these add up to 1. tokens and probabilities have room for the vocabulary; *n is set to the
 * number of tokens. Errors as above. */
mmrt_status mmrt_distribution(mmrt_isa isa, const mmrt_draw *draw, size_t vocabulary,
                              int32_t *tokens, float *probabilities, size_t *n, mmrt_error *err);

/* ---- state of sequences (state/) ------------------------------------------------------------ */

/* What a layer keeps of the tokens that a sequence has read. */
typedef enum mmrt_state_kind {
    MMRT_STATE_NOTHING,
    MMRT_STATE_PAGES,          /* keys and values, in pages of 32 tokens */
    MMRT_STATE_PAGES_OF_LAYER, /* none of its own: it reads those of another layer */
    MMRT_STATE_BLOCK,          /* bytes that every step writes anew, as recurrent layers do */
} mmrt_state_kind;

typedef struct mmrt_layer_state {
    mmrt_state_kind kind;
    uint32_t n_heads; /* PAGES: key-value heads */
    uint32_t k_dim;   /* elements of a head's key */
    uint32_t v_dim;   /* elements of its value; 0: values are a part of the keys */
    uint32_t k_type;  /* ids of tensor types: F16 or Q8_0 */
    uint32_t v_type;
    uint32_t window;      /* keys that a token sees, its own the last; 0 for all */
    uint32_t layer;       /* PAGES_OF_LAYER: an earlier one, which has pages */
    uint64_t block_bytes; /* BLOCK */
} mmrt_layer_state;

/* Elements that a head takes in pages and in the buffers of attention: k_dim or v_dim rounded up to
 * a multiple of 16, or of 32 if keys or values are Q8_0. */
uint32_t mmrt_key_room(const mmrt_layer_state *layer);
uint32_t mmrt_value_room(const mmrt_layer_state *layer);

/* The memory of all sequences of one model, and how it is laid out. A page holds what all layers
 * keep of 32 tokens; several sequences may hold the same page. Calls from several threads queue. A
 * child that is forked finds it, and every sequence, whole. */
typedef struct mmrt_state_store mmrt_state_store;

/* ARGUMENT or UNSUPPORTED, naming the layer, for what cannot be laid out. */
mmrt_status mmrt_state_store_create(const mmrt_layer_state *layers, uint32_t n_layers,
                                    mmrt_state_store **out, mmrt_error *err);

/* Lets go of it; it is freed with the last program and sequence that use it. */
void mmrt_state_store_free(mmrt_state_store *store);

uint64_t mmrt_state_store_bytes(mmrt_state_store *store);      /* held by all sequences together */
uint64_t mmrt_state_page_bytes(const mmrt_state_store *store); /* of 32 tokens, in all layers */

/* What a model keeps of one sequence. One call at a time may change it; meanwhile other threads may
 * ask for its length and bytes. */
typedef struct mmrt_state mmrt_state;

mmrt_status mmrt_state_create(mmrt_state_store *store, mmrt_state **out, mmrt_error *err);
void mmrt_state_free(mmrt_state *state);
uint64_t mmrt_state_length(const mmrt_state *state); /* tokens */

/* Bytes that the sequence would hold if no other held any of them; and of these, those that another
 * holds too. */
uint64_t mmrt_state_bytes(const mmrt_state *state);
uint64_t mmrt_state_shared_bytes(const mmrt_state *state);

/* Bytes that would be taken for the sequence to become `length` tokens long. */
uint64_t mmrt_state_growth(const mmrt_state *state, uint64_t length);

/* Another sequence of the same tokens, which holds the same memory: nothing is copied until one of
 * the two goes on, and then the last page alone, if that is not full. Not during a step. */
mmrt_status mmrt_state_fork(const mmrt_state *state, mmrt_state **out, mmrt_error *err);

/* Forgets the tokens from `length` on, gives their pages back, and returns how many are left:
 * `length`, or 0 where a layer keeps a block, which cannot be undone. */
uint64_t mmrt_state_rewind(mmrt_state *state, uint64_t length);

/* ---- programs (graph/, step/) ---------------------------------------------------------------- */

/* A forward pass as a flat list of operations on numbered buffers. A buffer holds `width` float32
 * values for each token of a step. Weights, buffers and rotation tables are added first and named
 * by the index that adding them returned; -1 stands for none. */
typedef struct mmrt_program mmrt_program;

typedef enum mmrt_op_kind {
#define MMRT_OP(NAME, name, meaning) MMRT_OP_##NAME,
#include "graph/ops.def"
#undef MMRT_OP
} mmrt_op_kind;

/* How the logits of a router become the weights of experts. */
typedef enum mmrt_gating {
    MMRT_GATING_SOFTMAX,       /* over all experts */
    MMRT_GATING_SIGMOID,       /* of each */
    MMRT_GATING_CHOSEN,        /* softmax over the chosen ones */
    MMRT_GATING_SQRT_SOFTPLUS, /* sqrt(log(1 + e^x)) of each */
} mmrt_gating;

typedef struct mmrt_op {
    mmrt_op_kind kind;
    int32_t in;     /* buffer read */
    int32_t out;    /* buffer written; ROPE: heads with room, which may be `in` */
    int32_t stream; /* NORM: the residual buffer, in place of `in` */
    int32_t weights[3];
    int32_t biases[3];  /* LINEAR, GLU, LOGITS: added to each weight's product */
    float scales[3];    /* likewise: what the product is multiplied with before, 1 for nothing */
    int32_t rope;       /* ROPE: rotation table */
    int32_t layer;      /* ROPE, ATTEND, JOIN: whose keys and values they are */
    int32_t n_heads;    /* likewise: query heads */
    int32_t activation; /* GLU: 0 SiLU, 1 GELU (tanh) */
    int32_t choices;  /* DISPATCH, EXPERT_GLU, EXPERT_DOWN, COMBINE: the buffer that ROUTE wrote */
    int32_t n_used;   /* ROUTE and those after it: experts of each token */
    int32_t n_groups; /* ROUTE: experts are chosen from the best n_groups_used of so many groups */
    int32_t n_groups_used;
    mmrt_gating gating; /* ROUTE: how logits become weights */
    bool normalised;    /* ROUTE: the weights of a token add up to 1, before `scale` */
    bool alike;         /* LINEAR: rounded alike however many tokens a step has */
    bool outputs_only;  /* work on the tokens whose logits are wanted, not on all; LOGITS: true */
    bool interleaved;   /* ROPE: pairs are neighbours, else halves of the head */
    float eps;          /* NORM, ROPE: of the RMS norms */
    float scale;        /* EMBED, ROUTE: factor; ATTEND: of the scores */
    float softcap;      /* ATTEND, LOGITS: 0 for none */
} mmrt_op;

/* For sequences of this store. max_tokens: the most that one step takes; scratch grows with it.
 * exact: what is computed for a token depends on the tokens before it in its text alone, to the
 * bit; else also, by rounding, on how many tokens a step has. Steps of one token cost the same
 * either way. */
mmrt_status mmrt_program_create(mmrt_isa isa, uint32_t max_tokens, mmrt_state_store *store,
                                bool exact, mmrt_program **out, mmrt_error *err);
void mmrt_program_free(mmrt_program *program);
mmrt_status mmrt_program_add_weight(mmrt_program *program, const mmrt_weight *weight,
                                    int32_t *index, mmrt_error *err);
/* A buffer has per_token columns of `width` values for each token. */
mmrt_status mmrt_program_add_buffer(mmrt_program *program, uint32_t width, uint32_t per_token,
                                    int32_t *index, mmrt_error *err);

/* Rotations by position * frequencies[i], i < n_pairs, times `magnitude`. */
mmrt_status mmrt_program_add_rope(mmrt_program *program, const double *frequencies,
                                  uint32_t n_pairs, float magnitude, int32_t *index,
                                  mmrt_error *err);

/* Appends an operation; FORMAT, naming the weight, if its shapes do not fit. */
mmrt_status mmrt_program_add_op(mmrt_program *program, const mmrt_op *op, mmrt_error *err);

/* Allocates scratch for n_threads. To be called once, after the last operation. */
mmrt_status mmrt_program_finish(mmrt_program *program, int n_threads, mmrt_error *err);

/* Bytes that steps of n tokens take. They stay taken, unless weights have a budget. */
uint64_t mmrt_program_scratch_bytes(const mmrt_program *program, uint32_t n);

/* Which rows of a weight each thread multiplies with, of n_threads that run a step: rows
 * first_rows[t] to first_rows[t + 1] - 1 are thread t's (n_threads + 1 numbers), but for those at
 * the end of its run that a thread which is done early takes over. False: no operation multiplies
 * with this weight. */
bool mmrt_program_shares(const mmrt_program *program, int32_t weight, int n_threads,
                         uint64_t *first_rows);

/* A note that a step takes: the time, and the process's counters so far, of all threads. All fields
 * are 64 bits wide, so that marks are rows of an array. */
typedef struct mmrt_mark {
    int64_t op; /* by the caller: taken after this operation; -1: before the first */
    int64_t ns; /* CLOCK_MONOTONIC */
    int64_t minor_faults;
    int64_t major_faults;
    int64_t read_bytes; /* from storage */
} mmrt_mark;

/* Tokens of a step that follow one another in one text. Several parts of a step may be of one text:
 * each goes on where the one before it ends. */
typedef struct mmrt_part {
    mmrt_state *state;  /* the text's */
    uint32_t n;         /* tokens, 1 or more */
    uint32_t n_outputs; /* logits are wanted of so many of them, the last; 0: of none */
} mmrt_part;

/* Runs one step on 1 to max_tokens tokens, first those of parts[0], then those of parts[1] and so
 * on, each at the positions from its state's length on, and appends them to the states. Writes the
 * logits that are wanted to logits, in the same order: float32 [sum of n_outputs][vocabulary]. On
 * any failure all states are as before. Weights that only logits need are not read where none is
 * wanted. NOT_FINITE if a logit is NaN or infinite; IO, naming the tensor, if a weight's file was
 * cut short or cannot be read.
 *
 * Fills in marks[0] to marks[n_marks - 1], in which `op` rises; each costs a system call of 1 to
 * 2 us. */
mmrt_status mmrt_program_run(mmrt_program *program, mmrt_pool *pool, const mmrt_part *parts,
                             int32_t n_parts, const int32_t *tokens, float *logits,
                             mmrt_mark *marks, int32_t n_marks, mmrt_poll_fn *poll,
                             void *poll_context, mmrt_error *err);

/* ---- streamed weights (stream/, graph/) ----------------------------------------------------- */

/* How weights that are not kept in memory are read in each step. */
typedef enum mmrt_reader {
#define MMRT_READER(id, name, meaning) MMRT_READER_##id,
#include "source/readers.def"
#undef MMRT_READER
    MMRT_READER_COUNT
} mmrt_reader;

const char *mmrt_reader_name(mmrt_reader reader);

/* UNSUPPORTED, and why, if this file cannot be read in this way. */
mmrt_status mmrt_reader_check(mmrt_reader reader, mmrt_mapping *mapping, mmrt_error *err);

/* Bytes a second that this reader brings from the disk, as measured by reading a range of the file,
 * which it drops from memory before. */
mmrt_status mmrt_reader_probe(mmrt_reader reader, mmrt_mapping *mapping, uint64_t offset,
                              uint64_t length, double *bytes_per_second, mmrt_error *err);

/* From now on a budget can be set for the program's weights. The files are the mappings that they
 * lie in. To be called once, after finish. Changes nothing else. */
mmrt_status mmrt_program_stream(mmrt_program *program, mmrt_mapping *const *files, int32_t n_files,
                                mmrt_error *err);

/* How to read what is not kept; at first, MAPPED. UNSUPPORTED changes nothing. */
mmrt_status mmrt_program_set_reader(mmrt_program *program, mmrt_reader reader, mmrt_error *err);

/* Matrices are kept on mapped pages as far as `budget` bytes allow, together with the ring of
 * buffers through which the others are streamed, spread evenly over a step. Vectors (norms, biases)
 * are kept besides. The first step after this loads what is to be kept; what is kept no longer is
 * dropped at once. From the first budget on that does not hold everything, faults on the files read
 * single pages, and long steps give their scratch back. May be called at any time between two
 * steps, also while one runs, whose end it waits for. NO_MEMORY, naming the least that would do,
 * changes nothing. */
mmrt_status mmrt_program_set_budget(mmrt_program *program, uint64_t budget, mmrt_error *err);

/* From now on what is kept is locked in memory when it has been loaded, as far as RLIMIT_MEMLOCK
 * allows. A budget that keeps everything then loads everything too. */
mmrt_status mmrt_program_lock_kept(mmrt_program *program, mmrt_error *err);

/* All in bytes. */
typedef struct mmrt_plan {
    uint64_t total; /* of the matrices that a step reads */
    uint64_t kept;
    uint64_t ring;
    uint64_t cache; /* of matrices that are used on demand */
    uint64_t rest;  /* what is kept beside the budget: vectors */
    uint64_t least; /* the smallest budget */
    uint64_t most;  /* the one that keeps everything */
} mmrt_plan;

/* What set_budget would do. kept: NULL, or room for the kept bytes of each weight. With NO_MEMORY
 * the plan keeps nothing, and says the least that would do. */
mmrt_status mmrt_program_plan(const mmrt_program *program, uint64_t budget, mmrt_plan *plan,
                              uint64_t *kept, mmrt_error *err);

/* What streaming has done so far. */
typedef struct mmrt_stream_stats {
    mmrt_reader reader;
    uint64_t steps;
    uint64_t kept_bytes;     /* by the present plan; of matrices */
    uint64_t locked_bytes;   /* of these, so far */
    uint64_t streamed_bytes; /* likewise: what a step reads */
    uint64_t ring_bytes;
    uint64_t cache_bytes;  /* of matrices that are used on demand */
    uint64_t wanted_units; /* of these, ... */
    uint64_t found_units;  /* ... and of them those that were there, or on their way */
    uint64_t read_bytes;   /* of streamed weights */
    uint64_t loaded_bytes; /* of kept ones, onto their mapped pages */
    double stall_seconds;  /* in which some thread waited for a read */
    double busy_seconds;   /* in which some streamed weight was being read */
} mmrt_stream_stats;

void mmrt_program_stream_stats(const mmrt_program *program, mmrt_stream_stats *stats);

#endif
