/* Which system calls there are: each is made with arguments that it must refuse. */
#define _GNU_SOURCE
#include "mmrt.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct call {
    const char *word;
    long number;
    const char *since;
} calls[] = {
#define MMRT_CALL(name, word, number, since) {word, number, since},
#include "base/calls.def"
#undef MMRT_CALL
};

const char *mmrt_call_name(mmrt_call call) {
    return calls[call].word;
}

const char *mmrt_call_since(mmrt_call call) {
    return calls[call].since;
}

mmrt_status mmrt_call_probe(mmrt_call call) {
    if (syscall(calls[call].number, -1L, -1L, -1L, -1L, -1L, -1L) >= 0)
        return MMRT_OK;
    if (errno == ENOSYS)
        return MMRT_UNSUPPORTED;
    return errno == EPERM || errno == EACCES ? MMRT_IO : MMRT_OK;
}
