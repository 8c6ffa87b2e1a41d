/* Mapping, advice, locks and residency on a file made here: its path is the only argument. */
#define _GNU_SOURCE
#include "mmrt.h"
#include "check.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_PAGES = 16 };

static uint64_t page;

static void make_file(const char *path) {
    page = (uint64_t)sysconf(_SC_PAGESIZE);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    for (uint64_t i = 0; i < N_PAGES * page - 100; i++) {
        unsigned char byte = (unsigned char)(i / page);
        CHECK(write(fd, &byte, 1) == 1);
    }
    CHECK(fsync(fd) == 0); /* dirty pages cannot be evicted */
    close(fd);
}

static unsigned resident(const mmrt_mapping *mapping, uint64_t offset, uint64_t length) {
    unsigned char pages[N_PAGES];
    bool trusted;
    unsigned total = 0;
    CHECK(mmrt_mapping_residency(mapping, offset, length, pages, &trusted, NULL) == MMRT_OK);
    for (uint64_t i = 0; i < mmrt_mapping_pages(mapping, offset, length); i++) {
        CHECK(pages[i] <= 1);
        total += pages[i];
    }
    return total;
}

static void test_refusals(const char *path) {
    mmrt_mapping *mapping;
    mmrt_error error;
    char other[4096];
    CHECK_STATUS(mmrt_mapping_open("/no/such/file", &mapping, &error), MMRT_IO, &error,
                 "cannot open '/no/such/file': No such file");
    CHECK(!mapping && error.os_errno != 0);
    CHECK_STATUS(mmrt_mapping_open("/", &mapping, &error), MMRT_IO, &error, "which is a directory");
    CHECK_STATUS(mmrt_mapping_open("/dev/null", &mapping, &error), MMRT_IO, &error, "a device");

    snprintf(other, sizeof other, "%s.fifo", path);
    CHECK(mkfifo(other, 0600) == 0);
    CHECK_STATUS(mmrt_mapping_open(other, &mapping, &error), MMRT_IO, &error, "which is a FIFO");
    unlink(other);

    snprintf(other, sizeof other, "%s.empty", path);
    close(open(other, O_CREAT | O_WRONLY, 0600));
    CHECK_STATUS(mmrt_mapping_open(other, &mapping, &error), MMRT_FORMAT, &error, "is empty");
    unlink(other);
    mmrt_mapping_close(NULL);
}

static void test_ranges(mmrt_mapping *mapping) {
    uint64_t size = mmrt_mapping_size(mapping);
    mmrt_error error;
    CHECK(mmrt_mapping_pages(mapping, 0, 0) == 0);
    CHECK(mmrt_mapping_pages(mapping, 1, 1) == 1);
    CHECK(mmrt_mapping_pages(mapping, page - 1, 2) == 2);
    CHECK(mmrt_mapping_pages(mapping, 0, size) == N_PAGES);
    CHECK(mmrt_mapping_advise(mapping, size, 0, MMRT_ADVICE_EVICT, &error) == MMRT_OK);
    CHECK_STATUS(mmrt_mapping_advise(mapping, size, 1, MMRT_ADVICE_NORMAL, &error), MMRT_ARGUMENT,
                 &error, "outside a mapping");
    CHECK_STATUS(mmrt_mapping_advise(mapping, 2, UINT64_MAX, MMRT_ADVICE_NORMAL, &error),
                 MMRT_ARGUMENT, &error, "outside a mapping");
    CHECK_STATUS(mmrt_mapping_lock(mapping, UINT64_MAX, 2, false, &error), MMRT_ARGUMENT, &error,
                 "outside a mapping");
    CHECK_STATUS(mmrt_mapping_advise(mapping, 0, 1, (mmrt_advice)99, &error), MMRT_ARGUMENT, &error,
                 "no advice number 99");
}

static void test_residency(mmrt_mapping *mapping) {
    uint64_t size = mmrt_mapping_size(mapping);
    mmrt_error error;
    CHECK_STATUS(mmrt_mapping_advise(mapping, 0, size, MMRT_ADVICE_POPULATE_READ, &error), MMRT_OK,
                 &error, "");
    CHECK(resident(mapping, 0, size) == N_PAGES);

    /* Whole pages only: the two that the range shares with its neighbours stay. */
    CHECK_STATUS(mmrt_mapping_advise(mapping, 2 * page + 1, 4 * page, MMRT_ADVICE_EVICT, &error),
                 MMRT_OK, &error, "");
    unsigned left = resident(mapping, 0, size);
    CHECK(left == N_PAGES - 3 || left == N_PAGES); /* all: a file system in memory */
    CHECK(resident(mapping, 2 * page, page) == 1 && resident(mapping, 6 * page, page) == 1);
    CHECK(mmrt_mapping_advise(mapping, page / 2, page / 2, MMRT_ADVICE_EVICT, NULL) == MMRT_OK);
    CHECK(resident(mapping, 0, page) == 1);

    /* The file's last page is whole though the file ends within it. */
    CHECK(mmrt_mapping_advise(mapping, 0, size, MMRT_ADVICE_EVICT, NULL) == MMRT_OK);
    CHECK(resident(mapping, 0, size) == 0 || left == N_PAGES);
    CHECK(((const unsigned char *)mmrt_mapping_data(mapping))[3 * page] == 3);
}

static void test_locks(mmrt_mapping *mapping) {
    mmrt_error error = {0};
    mmrt_status status = mmrt_mapping_lock(mapping, page, 1, false, &error);
    if (status == MMRT_NO_MEMORY) { /* RLIMIT_MEMLOCK is zero here */
        CHECK(strstr(error.message, "RLIMIT_MEMLOCK"));
        return;
    }
    /* Sanitizers make mlock() do nothing: tests/test_mapping.py covers what a lock holds. */
    CHECK(status == MMRT_OK && mmrt_mapping_unlock(mapping, page, 1, &error) == MMRT_OK);
}

/* Of a file that this process may neither own nor write, residency tells what is mapped here. */
static int residency_of_a_strangers_file(void) {
    if (geteuid() == 0 && (setuid(65534) != 0 || prctl(PR_SET_DUMPABLE, 1) != 0))
        return 0;
    mmrt_mapping *mapping;
    unsigned char first;
    bool trusted;
    mmrt_error error;
    CHECK_STATUS(mmrt_mapping_open("/bin/sh", &mapping, &error), MMRT_OK, &error, "");
    if (!mapping)
        return check_result();
    CHECK_STATUS(mmrt_mapping_residency(mapping, 0, 1, &first, &trusted, &error), MMRT_OK, &error,
                 "");
    CHECK(!trusted && first == 0);
    CHECK(*(const volatile char *)mmrt_mapping_data(mapping) != 0);
    CHECK(mmrt_mapping_residency(mapping, 0, 1, &first, &trusted, &error) == MMRT_OK && first == 1);
    CHECK(mmrt_mapping_mapped(mapping, 0, 1, &first, &error) == MMRT_OK && first == 1);
    mmrt_mapping_close(mapping);
    return check_result();
}

static void test_trust(void) {
    int status = 1;
    pid_t child = fork();
    if (child == 0)
        _exit(residency_of_a_strangers_file());
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s SCRATCH_FILE\n", argv[0]);
        return 2;
    }
    test_trust();
    make_file(argv[1]);
    test_refusals(argv[1]);

    mmrt_mapping *mapping;
    mmrt_error error;
    CHECK_STATUS(mmrt_mapping_open(argv[1], &mapping, &error), MMRT_OK, &error, "");
    if (mapping) {
        struct stat status;
        CHECK(stat(argv[1], &status) == 0 && mmrt_mapping_page_size(mapping) == page);
        CHECK(mmrt_mapping_size(mapping) == N_PAGES * page - 100);
        CHECK(mmrt_mapping_modified_ns(mapping) ==
              (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec);
        test_ranges(mapping);
        test_residency(mapping);
        test_locks(mapping);
        mmrt_mapping_close(mapping);
    }
    unlink(argv[1]);
    return check_result();
}
