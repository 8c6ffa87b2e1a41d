"""What this kernel offers to this process, as asked of it."""

from mmrt.core._c cimport (
    MMRT_ADVICE_COUNT, MMRT_CALL_COUNT, MMRT_OK, MMRT_UNSUPPORTED, mmrt_advice, mmrt_advice_known,
    mmrt_advice_name, mmrt_advice_since, mmrt_call, mmrt_call_name, mmrt_call_probe,
    mmrt_call_since, mmrt_cgroup, mmrt_cgroup_cpus, mmrt_cgroup_find, mmrt_cgroup_up, mmrt_status,
)

import os


def advice():
    """Each advice on mapped pages -> "available" or why not."""
    cdef int i
    return {
        mmrt_advice_name(<mmrt_advice> i).decode():
        "available" if mmrt_advice_known(<mmrt_advice> i) else _lacking(
            mmrt_advice_since(<mmrt_advice> i)
        )
        for i in range(MMRT_ADVICE_COUNT)
    }


def calls():
    """System calls that not every kernel has -> "available" or why not."""
    cdef int i
    cdef mmrt_status status
    found = {}
    for i in range(MMRT_CALL_COUNT):
        status = mmrt_call_probe(<mmrt_call> i)
        if status == MMRT_OK:
            state = "available"
        elif status == MMRT_UNSUPPORTED:
            state = _lacking(mmrt_call_since(<mmrt_call> i))
        else:
            state = "forbidden to this process"
        found[mmrt_call_name(<mmrt_call> i).decode()] = state
    return found


# Where the kernel lists the cgroups of this process, and the mounts that it sees.
_GROUPS, _MOUNTS = "/proc/self/cgroup", "/proc/self/mountinfo"


def cgroups(str controller not None, int version, groups=_GROUPS, mounts=_MOUNTS):
    """The folders of the cgroups around this process that a controller ("cpu", "memory") may bound,
    inner ones first, in the hierarchy of version 1 or 2 of the interface."""
    cdef mmrt_cgroup group
    found = []
    if mmrt_cgroup_find(
        controller.encode(), version, os.fsencode(groups), os.fsencode(mounts), &group
    ):
        found.append(os.fsdecode(<bytes> group.path))
        while mmrt_cgroup_up(&group):
            found.append(os.fsdecode(<bytes> group.path))
    return found


def cpu_quota(groups=_GROUPS, mounts=_MOUNTS):
    """The tightest quota of CPU time of the cgroups around this process, in CPUs; None: there is
    none."""
    return mmrt_cgroup_cpus(os.fsencode(groups), os.fsencode(mounts)) or None


cdef str _lacking(const char *since):
    return f"not in this kernel (Linux has it since {since.decode()}, where it is built in)"
