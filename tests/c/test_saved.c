/* Pages of sequences in files: who maps them reads what was written, or an error. */
#define _GNU_SOURCE
#include "check.h"
#include "state/state.h"
#include "stores.h"
#include "texts.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* ---- pages in files ---- */

static const uint64_t FROM = 8192; /* in the file */

/* A file of nothing, which is there as long as it is open; its path. */
static int open_file(const char *path, const mmrt_state_store *store) {
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)(FROM + mmrt_state_saved_bytes(store))) == 0);
    return fd;
}

/* Saves tokens [first, first + n) of the text in the file and returns their sum. */
static uint64_t save(const struct text *text, uint64_t first, uint64_t n, int fd) {
    uint64_t sum = 0;
    CHECK(mmrt_state_save(text->state, first, n, fd, FROM, &sum, &error) == MMRT_OK);
    return sum;
}

static void attach(struct text *text, const char *path, uint64_t n, uint64_t sum) {
    CHECK(mmrt_state_attach(text->state, path, FROM, n, false, sum, &error) == MMRT_OK);
    text->n += n;
}

static void test_pages_in_files(mmrt_state_store *store, const char *scratch, uint64_t tail) {
    char whole[4096], rest[4096];
    snprintf(whole, sizeof whole, "%s.whole.kv", scratch);
    snprintf(rest, sizeof rest, "%s.rest.kv", scratch);
    const int whole_fd = open_file(whole, store), rest_fd = open_file(rest, store);
    struct text one = new_text(store), fork, other;
    extend(&one, 100, 1);
    fork = fork_text(&one); /* so that its pages do not lie in a row */
    extend(&fork, 90, 2);
    extend(&one, 156 + tail, 3);
    const uint64_t sum = save(&one, 0, 256, whole_fd), of_rest = save(&one, 256, tail, rest_fd);
    const uint64_t page = mmrt_state_page_bytes(store), held = mmrt_state_store_bytes(store);
    other = one;
    CHECK(mmrt_state_create(store, &other.state, &error) == MMRT_OK);
    other.n = 0;
    attach(&other, whole, 256, sum);
    attach(&other, rest, tail, of_rest);
    check_text(&other);
    CHECK(mmrt_state_check(other.state, &error) == MMRT_OK);
    CHECK(mmrt_state_bytes(other.state) == 0 && mmrt_state_store_bytes(store) == held);
    CHECK(mmrt_state_mapped_bytes(other.state) == (8 + pages_of(tail)) * page);
    end_text(&one);
    end_text(&fork);
    CHECK(mmrt_state_store_bytes(store) == 0);
    /* What is written goes into memory of its own; forks and rewinding are as always. */
    struct text third = fork_text(&other);
    fail_to_extend(&third, 3, 7);
    check_text(&third);
    extend(&third, 5, 4);
    extend(&other, 60, 5);
    check_text(&third);
    check_text(&other);
    rewind_text(&other, 70);
    extend(&other, 300, 6);
    check_text(&other);
    check_text(&third);
    rewind_text(&third, 256);
    attach(&third, rest, tail, of_rest);
    memcpy(third.tokens + 256, one.tokens + 256, tail);
    check_text(&third);
    end_text(&other);
    CHECK(mmrt_state_mapped_bytes(third.state) == mmrt_state_store_mapped_bytes(store));
    end_text(&third);
    CHECK(mmrt_state_store_mapped_bytes(store) == 0);
    close(whole_fd);
    close(rest_fd);
    end_store(store);
}

static void test_files_that_are_refused(mmrt_state_store *store, const char *scratch) {
    char path[4096];
    snprintf(path, sizeof path, "%s.refused.kv", scratch);
    const int fd = open_file(path, store);
    struct text text = new_text(store), empty = new_text(store);
    extend(&text, 300, 1);
    uint64_t sum = save(&text, 0, 256, fd), none;
    static const struct {
        uint64_t first, n;
    } ranges[] = {{0, 0}, {0, 257}, {32, 10}, {256, 45}, {512, 1}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        CHECK(mmrt_state_save(text.state, ranges[i].first, ranges[i].n, fd, FROM, &none, &error) ==
              MMRT_ARGUMENT);
    CHECK(mmrt_state_save(text.state, 0, 256, -1, FROM, &none, &error) == MMRT_IO);
    mmrt_state *state = empty.state;
    CHECK(mmrt_state_attach(state, path, FROM, 256, false, sum + 1, &error) == MMRT_FORMAT);
    CHECK(strstr(error.message, "refused.kv"));
    CHECK(mmrt_state_attach(state, path, FROM, 0, false, sum, &error) == MMRT_ARGUMENT);
    CHECK(mmrt_state_attach(state, path, FROM, 257, false, sum, &error) == MMRT_ARGUMENT);
    CHECK(mmrt_state_attach(state, path, 17, 256, false, sum, &error) == MMRT_ARGUMENT);
    CHECK(mmrt_state_attach(text.state, path, FROM, 256, false, sum, &error) == MMRT_ARGUMENT);
    CHECK(mmrt_state_attach(state, "/nowhere", FROM, 256, false, sum, &error) == MMRT_IO);
    const uint8_t wrong = 3;
    CHECK(pwrite(fd, &wrong, 1, (off_t)FROM + 77) == 1);
    CHECK(mmrt_state_attach(state, path, FROM, 256, false, sum, &error) == MMRT_FORMAT);
    sum = save(&text, 0, 256, fd);
    attach(&empty, path, 256, sum);
    CHECK(ftruncate(fd, (off_t)FROM) == 0);
    CHECK(mmrt_state_attach(text.state, path, FROM, 256, false, sum, &error) == MMRT_ARGUMENT);
    (void)*(volatile const uint8_t *)mmrt_state_pages(state, 0)[0];
    CHECK(mmrt_state_check(state, &error) == MMRT_IO && strstr(error.message, "refused.kv"));
    end_text(&empty);
    end_text(&text);
    close(fd);
    end_store(store);
}

static void test_blocks_in_files(mmrt_state_store *store, const char *scratch) {
    char path[4096];
    snprintf(path, sizeof path, "%s.block.kv", scratch);
    const int fd = open_file(path, store);
    const uint64_t bytes = mmrt_state_saved_bytes(store) + mmrt_state_block_bytes(store);
    CHECK(ftruncate(fd, (off_t)(FROM + bytes)) == 0);
    struct text one = new_text(store);
    extend(&one, 10, 1);
    CHECK(mmrt_state_checkpoint(one.state, &error) == MMRT_OK);
    struct text other = one;
    extend(&one, 30, 2);
    const uint64_t sum = save(&one, 0, 10, fd); /* with the block of its checkpoint */
    CHECK(mmrt_state_create(store, &other.state, &error) == MMRT_OK);
    CHECK(mmrt_state_attach(other.state, path, FROM, 10, true, sum ^ 1, &error) == MMRT_FORMAT);
    CHECK(mmrt_state_attach(other.state, path, FROM, 10, true, sum, &error) == MMRT_OK);
    check_text(&other);
    extend(&other, 40, 3);
    check_text(&other);
    end_text(&other);
    /* Without a block there is no step, until the sequence goes back. */
    save(&one, 0, 5, fd);
    other = one;
    CHECK(mmrt_state_create(store, &other.state, &error) == MMRT_OK);
    uint64_t of_pages = 0;
    CHECK(mmrt_state_save(one.state, 0, 5, fd, FROM, &of_pages, &error) == MMRT_OK);
    CHECK(mmrt_state_attach(other.state, path, FROM, 5, false, of_pages, &error) == MMRT_OK);
    CHECK(mmrt_state_reserve(other.state, 6, &error) == MMRT_ARGUMENT);
    CHECK(mmrt_state_rewind(other.state, 4) == 0);
    CHECK(mmrt_state_reserve(other.state, 6, &error) == MMRT_OK);
    end_text(&other);
    end_text(&one);
    close(fd);
    end_store(store);
}

static void test_there_must_be_pages(mmrt_state_store *store) {
    struct text text = new_text(store);
    extend(&text, 10, 1);
    uint64_t sum;
    CHECK(mmrt_state_save(text.state, 0, 10, 1, 0, &sum, &error) == MMRT_UNSUPPORTED);
    CHECK(mmrt_state_attach(text.state, "/nowhere", 0, 10, false, 0, &error) == MMRT_UNSUPPORTED);
    end_text(&text);
    end_store(store);
}

int main(int argc, char **argv) {
    const char *scratch = argc > 1 ? argv[1] : "saved";
    test_pages_in_files(STORE(alike), scratch, 37);
    test_pages_in_files(STORE(unlike), scratch, 256);
    test_files_that_are_refused(STORE(unlike), scratch);
    test_blocks_in_files(STORE(with_blocks), scratch);
    test_there_must_be_pages(STORE(only_a_block));
    return check_result();
}
