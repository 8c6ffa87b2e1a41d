/* Memory policies: from which nodes the kernel takes new pages. */
#define _GNU_SOURCE
#include "map/numa.h"

#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's own numbers. */
enum {
    MODE_FLAGS = 7 << 13,         /* MPOL_F_STATIC_NODES and its like */
    MOVE_OWN = 1 << 1,            /* MPOL_MF_MOVE */
    MAXNODE = MMRT_SET_LIMIT + 1, /* it counts one more than the bits */
};

const char *mmrt_numa_mode_name(mmrt_numa_mode mode) {
    static const char *const names[MMRT_NUMA_MODE_COUNT] = {
        [MMRT_NUMA_DEFAULT] = "default",
        [MMRT_NUMA_PREFERRED] = "preferred",
        [MMRT_NUMA_BIND] = "bind",
        [MMRT_NUMA_INTERLEAVE] = "interleave",
        [MMRT_NUMA_LOCAL] = "local",
        [MMRT_NUMA_PREFERRED_MANY] = "preferred_many",
        [MMRT_NUMA_WEIGHTED_INTERLEAVE] = "weighted_interleave",
    };
    return (unsigned)mode < MMRT_NUMA_MODE_COUNT ? names[mode] : NULL;
}

mmrt_status mmrt_numa_refused(const char *what, mmrt_error *err) {
    if (errno == ENOSYS)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "%s: this kernel is built without NUMA", what);
    if (errno == EPERM)
        return mmrt_fail(err, MMRT_UNSUPPORTED,
                         "%s: forbidden here, as in containers that lack CAP_SYS_NICE", what);
    return mmrt_fail_errno(err, "%s", what);
}

static mmrt_status check_policy(const mmrt_numa_policy *policy, mmrt_error *err) {
    const char *name = mmrt_numa_mode_name(policy->mode);
    if (!name)
        return mmrt_fail(err, MMRT_ARGUMENT, "there is no memory policy number %d",
                         (int)policy->mode);
    const int n = mmrt_set_count(&policy->nodes);
    const bool wants_none = policy->mode == MMRT_NUMA_DEFAULT || policy->mode == MMRT_NUMA_LOCAL;
    if (wants_none != (n == 0))
        return mmrt_fail(err, MMRT_ARGUMENT, "memory policy %s takes %s", name,
                         wants_none ? "no nodes" : "at least one node");
    if (policy->mode == MMRT_NUMA_PREFERRED && n > 1)
        return mmrt_fail(err, MMRT_ARGUMENT, "memory policy preferred takes one node, not %d", n);
    mmrt_set allowed;
    mmrt_status status = mmrt_numa_allowed(&allowed, err);
    for (int id = 0; !status && id < MMRT_SET_LIMIT && mmrt_set_count(&allowed); id++)
        if (mmrt_set_has(&policy->nodes, id) && !mmrt_set_has(&allowed, id))
            return mmrt_fail(err, MMRT_ARGUMENT,
                             "memory policy %s: there is no node %d with memory that this process "
                             "may use",
                             name, id);
    return status;
}

static mmrt_status policy_refused(const mmrt_numa_policy *policy, mmrt_error *err) {
    char what[64];
    if (errno == EINVAL && policy->mode >= MMRT_NUMA_PREFERRED_MANY)
        return mmrt_fail(err, MMRT_UNSUPPORTED, "memory policy %s needs Linux %s or later",
                         mmrt_numa_mode_name(policy->mode),
                         policy->mode == MMRT_NUMA_PREFERRED_MANY ? "5.15" : "6.9");
    snprintf(what, sizeof what, "memory policy %s", mmrt_numa_mode_name(policy->mode));
    return mmrt_numa_refused(what, err);
}

/* The nodes as the kernel wants them: none at all for a policy that takes none. */
static const mmrt_set *nodes_of(const mmrt_numa_policy *policy) {
    return mmrt_set_count(&policy->nodes) ? &policy->nodes : NULL;
}

mmrt_status mmrt_numa_set_policy(const mmrt_numa_policy *policy, mmrt_error *err) {
    mmrt_status status = check_policy(policy, err);
    if (status)
        return status;
    const mmrt_set *nodes = nodes_of(policy);
    if (syscall(SYS_set_mempolicy, (int)policy->mode | policy->flags, nodes, nodes ? MAXNODE : 0) !=
        0)
        return policy_refused(policy, err);
    return MMRT_OK;
}

mmrt_status mmrt_numa_get_policy(mmrt_numa_policy *out, mmrt_error *err) {
    int mode = 0;
    memset(out, 0, sizeof *out);
    if (syscall(SYS_get_mempolicy, &mode, &out->nodes, MAXNODE, NULL, 0) != 0)
        return mmrt_numa_refused("reading the memory policy", err);
    out->flags = mode & MODE_FLAGS;
    out->mode = (mmrt_numa_mode)(mode & ~MODE_FLAGS);
    if (out->mode == MMRT_NUMA_PREFERRED && mmrt_set_count(&out->nodes) == 0)
        out->mode = MMRT_NUMA_LOCAL; /* as kernels before 5.14 tell it */
    if (!mmrt_numa_mode_name(out->mode))
        return mmrt_fail(err, MMRT_UNSUPPORTED, "this thread's memory policy is number %d, unknown",
                         (int)out->mode);
    return MMRT_OK;
}

mmrt_status mmrt_numa_bind(void *start, uint64_t length, const mmrt_numa_policy *policy, bool move,
                           mmrt_error *err) {
    mmrt_status status = check_policy(policy, err);
    if (status)
        return status;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t skip = (page - (uintptr_t)start % page) % page;
    if (length < skip || length - skip < page)
        return MMRT_OK;
    const uint64_t whole = (length - skip) / page * page;
    const mmrt_set *nodes = nodes_of(policy);
    if (syscall(SYS_mbind, (char *)start + skip, whole, (int)policy->mode | policy->flags, nodes,
                nodes ? MAXNODE : 0, move ? MOVE_OWN : 0) != 0)
        return policy_refused(policy, err);
    return MMRT_OK;
}
