/* Advice to the kernel: on mapped pages by madvise(), on files by posix_fadvise() and readahead().
 */
#define _GNU_SOURCE
#include "map/mapping.h"

#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

/* Older C libraries do not name all of these. */
#ifdef __linux__
#ifndef MADV_FREE
#define MADV_FREE 8
#endif
#ifndef MADV_COLD
#define MADV_COLD    20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#endif

enum pages { TOUCHED, INSIDE, WHOLE };

static const struct advice {
    const char *word;
    int number;
    enum pages pages;
    const char *since;
    const char *needs;
} advices[] = {
#define MMRT_ADVICE(name, word, number, pages, since, needs) {word, number, pages, since, needs},
#include "map/advice.def"
#undef MMRT_ADVICE
};

static const struct file_advice {
    const char *word;
    int number;
    enum pages pages;
} file_advices[] = {
#define MMRT_FILE_ADVICE(name, word, number, pages) {word, number, pages},
#include "map/file_advice.def"
#undef MMRT_FILE_ADVICE
};

/* The kernel reads no more of one request than the disk's read-ahead and drops the rest in silence,
 * so a range is asked for in pieces as small as the smallest usual read-ahead. */
static const uint64_t READ_PIECE = 128 << 10;

static mmrt_pages pages_of(const mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                           enum pages pages) {
    switch (pages) {
    case INSIDE: return mmrt_pages_inside(mapping, offset, length);
    case TOUCHED: return mmrt_pages_touched(mapping, offset, length);
    default: return mmrt_pages_touched(mapping, 0, mapping->size);
    }
}

/* ---- on mapped pages ---- */

const char *mmrt_advice_name(mmrt_advice advice) {
    return advices[advice].word;
}

const char *mmrt_advice_since(mmrt_advice advice) {
    return advices[advice].since;
}

bool mmrt_advice_known(mmrt_advice advice) {
    return madvise(NULL, 0, advices[advice].number) == 0;
}

/* Says which byte of the range cannot be populated: where the disk failed. */
static mmrt_status cannot_populate(const mmrt_mapping *mapping, mmrt_pages range, int number,
                                   mmrt_error *err) {
    uint64_t first = range.start, end = range.start + range.length; /* it is in [first, end) */
    while (end - first > mapping->page) {
        const uint64_t half = (end - first) / mapping->page / 2 * mapping->page;
        if (madvise(mapping->data + first, (size_t)half, number) == 0)
            first += half;
        else
            end = first + half;
    }
    errno = EIO; /* the kernel's EFAULT is about memory */
    return mmrt_fail_errno(err, "%s: cannot read at byte %llu", mapping->name,
                           (unsigned long long)(mapping->offset + first));
}

static mmrt_status refused(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                           mmrt_pages range, const struct advice *advice, mmrt_error *err) {
    const int error = errno;
    if (error == EINVAL && madvise(NULL, 0, advice->number) != 0)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "this kernel does not know the advice %s; Linux has it since %s, where it "
                         "is built in",
                         advice->word, advice->since);
    if (error == EINVAL || error == EBADF)
        return mmrt_fail(err, MMRT_ARGUMENT, "the advice %s needs %s", advice->word, advice->needs);
    mmrt_status status = mmrt_mapping_check(mapping, offset, length, NULL, err);
    if (status != MMRT_OK)
        return status; /* why populating failed */
    if (error == EFAULT && mapping->has_file && advice == &advices[MMRT_ADVICE_POPULATE_READ])
        return cannot_populate(mapping, range, advice->number, err);
    errno = error;
    return mmrt_fail_errno(err, "cannot take the advice %s", advice->word);
}

mmrt_status mmrt_mapping_advise(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                mmrt_advice kind, mmrt_error *err) {
    if ((unsigned)kind >= MMRT_ADVICE_COUNT)
        return mmrt_fail(err, MMRT_ARGUMENT, "there is no advice number %d", (int)kind);
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;

    const struct advice *advice = &advices[kind];
    const mmrt_pages range = pages_of(mapping, offset, length, advice->pages);
    const uint64_t piece =
        kind == MMRT_ADVICE_WILLNEED && mapping->has_file ? READ_PIECE : range.length;
    for (uint64_t done = 0; done < range.length; done += piece) {
        const uint64_t rest = range.length - done;
        int result;
        do
            result = madvise(mapping->data + range.start + done,
                             (size_t)(rest < piece ? rest : piece), advice->number);
        while (result != 0 && errno == EINTR);
        if (result != 0)
            return refused(mapping, offset, length, range, advice, err);
    }
    /* The page cache keeps what is mapped anywhere: it could not drop them before. */
    if (kind == MMRT_ADVICE_EVICT && mapping->has_file)
        return mmrt_mapping_advise_file(mapping, offset, length, MMRT_FILE_ADVICE_DONTNEED, err);
    return MMRT_OK;
}

/* ---- on the file ---- */

const char *mmrt_file_advice_name(mmrt_file_advice advice) {
    return file_advices[advice].word;
}

static int advise_file(int fd, uint64_t start, uint64_t length, mmrt_file_advice kind) {
    if (kind == MMRT_FILE_ADVICE_READAHEAD)
        return readahead(fd, (off_t)start, (size_t)length) == 0 ? 0 : errno;
    return posix_fadvise(fd, (off_t)start, (off_t)length, file_advices[kind].number);
}

mmrt_status mmrt_mapping_advise_file(mmrt_mapping *mapping, uint64_t offset, uint64_t length,
                                     mmrt_file_advice kind, mmrt_error *err) {
    if ((unsigned)kind >= MMRT_FILE_ADVICE_COUNT)
        return mmrt_fail(err, MMRT_ARGUMENT, "there is no advice on files number %d", (int)kind);
    mmrt_status status = mmrt_check_range(mapping, offset, length, err);
    if (status != MMRT_OK)
        return status;
    if (!mapping->has_file)
        return mmrt_fail(err, MMRT_ARGUMENT, "this memory has no file to advise on");
    const int fd = mmrt_file_borrow(&mapping->file);
    if (fd < 0)
        return mmrt_fail_errno(err, "cannot open '%s' again", mapping->name);

    const mmrt_pages range = pages_of(mapping, offset, length, file_advices[kind].pages);
    const bool reads = kind == MMRT_FILE_ADVICE_WILLNEED || kind == MMRT_FILE_ADVICE_READAHEAD;
    const uint64_t piece = reads ? READ_PIECE : range.length;
    for (uint64_t done = 0; status == MMRT_OK && done < range.length; done += piece) {
        const uint64_t rest = range.length - done;
        errno = advise_file(fd, mapping->offset + range.start + done, rest < piece ? rest : piece,
                            kind);
        if (errno != 0)
            status = mmrt_fail_errno(err, "%s: cannot take the advice %s", mapping->name,
                                     file_advices[kind].word);
    }
    mmrt_file_return(&mapping->file, fd);
    return status;
}
