"""Memory nodes (NUMA): what there are, where memory comes from, and where it lies.

To have each matrix row in the memory of the node whose threads read it, open a file or a model with
policy="numa"; what that does is made of bind_pool() and place(). It all works on a machine of one
node too, where there is little to do.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int16_t, uint64_t
from libc.string cimport memset

from mmrt.core._c cimport (
    MMRT_NUMA_MODE_COUNT, MMRT_SET_LIMIT, bool_t, mmrt_error, mmrt_numa_bind, mmrt_numa_bind_pool,
    mmrt_numa_get_policy, mmrt_numa_mode, mmrt_numa_mode_name, mmrt_numa_n_pages, mmrt_numa_pages,
    mmrt_numa_place, mmrt_numa_policy, mmrt_numa_range, mmrt_numa_set_policy, mmrt_numa_topology,
    mmrt_numa_topology_read, mmrt_set, mmrt_set_add, mmrt_set_has, mmrt_status,
)
from mmrt.core._calls cimport pid_t
from mmrt.core._status cimport check, check_polled, poll
from mmrt.core.kernels cimport Pool
from mmrt.core.mapping cimport Mapping

import operator
import os
import threading
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

from mmrt.core.arguments import checked, instance
from mmrt.errors import ArgumentError, OutOfMemoryError

MODES = tuple(
    mmrt_numa_mode_name(<mmrt_numa_mode> mode).decode() for mode in range(MMRT_NUMA_MODE_COUNT)
)


cdef tuple _numbers(const mmrt_set *set):
    return tuple(i for i in range(MMRT_SET_LIMIT) if mmrt_set_has(set, i))


# ---- topology ----

@dataclass(frozen=True)
class Node:
    """A memory node. One may have no CPUs, or no memory."""

    id: int
    cpus: tuple
    total: int
    free: int
    distances: dict


@dataclass(frozen=True)
class Topology:
    """The online nodes, and the ids of those whose memory this process may use."""

    nodes: tuple
    allowed: tuple

    def __str__(self):
        return "\n".join(
            f"node {node.id}: {len(node.cpus)} CPUs, {node.total >> 20} MiB, "
            f"{node.free >> 20} MiB free" + ("" if node.id in self.allowed else ", not allowed")
            for node in self.nodes
        )


@checked
def topology(root=None):
    """The machine's nodes. Without NUMA there is one, 0.

    root: a folder to read in place of /sys/devices/system/node. FormatError if it makes no sense.
    """
    cdef mmrt_numa_topology found
    cdef mmrt_error error
    cdef int i, other
    cdef bytes folder = b"" if root is None else os.fsencode(root)
    check(
        mmrt_numa_topology_read(<const char *> folder if folder else NULL, &found, &error), &error
    )
    nodes = tuple(
        Node(
            found.nodes[i].id,
            _numbers(&found.nodes[i].cpus),
            found.nodes[i].total,
            found.nodes[i].free,
            {
                found.nodes[other].id: found.nodes[i].distances[other]
                for other in range(found.n_nodes)
            },
        )
        for i in range(found.n_nodes)
    )
    return Topology(nodes, _numbers(&found.allowed))


# ---- policies ----

class Policy(NamedTuple):
    """A name from MODES, and the nodes that it is about."""

    mode: str
    nodes: tuple


cdef mmrt_numa_policy _policy(mode, nodes) except *:
    cdef mmrt_numa_policy policy
    memset(&policy, 0, sizeof(policy))
    if mode not in MODES:
        raise ArgumentError(f"a memory policy is one of {', '.join(MODES)}; not {mode!r:.60}")
    policy.mode = <mmrt_numa_mode> <int> MODES.index(mode)
    for node in [nodes] if isinstance(nodes, Integral) else nodes:
        mmrt_set_add(&policy.nodes, _node(node))
    return policy


cdef int _node(node) except -1:
    number = operator.index(node)
    if not 0 <= number < MMRT_SET_LIMIT:
        raise ArgumentError(f"there is no node {number}")
    return number


def get_policy():
    """The calling thread's Policy. UnsupportedError where a container forbids to ask."""
    cdef mmrt_numa_policy policy
    cdef mmrt_error error
    check(mmrt_numa_get_policy(&policy, &error), &error)
    return Policy(MODES[policy.mode], _numbers(&policy.nodes))


cdef class _Restored:
    """Puts the thread's former policy back at the end of the block."""

    cdef mmrt_numa_policy former
    cdef object thread

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        cdef mmrt_error error
        if threading.get_ident() != self.thread:
            raise ArgumentError("a memory policy belongs to the thread that set it")
        check(mmrt_numa_set_policy(&self.former, &error), &error)


@checked
def set_policy(mode, nodes=()):
    """Says from where memory comes that the calling thread is the first to touch: from now on, or
    in a `with` statement until the end of its block.

    "preferred" takes one node, and uses others when it is full; "preferred_many" several. "bind"
    uses these nodes alone. "interleave" takes pages from these nodes in turn, and
    "weighted_interleave" in proportion to /sys/kernel/mm/mempolicy/weighted_interleave. "local"
    takes the node that the thread runs on, and so does "default", which means no policy. The
    page cache follows the policy of the thread that reads a page in.

    nodes: one, or several. Raises ArgumentError for other words and for nodes that do not fit or
    may not be used; UnsupportedError where the kernel does not know the policy or has no NUMA, or a
    container forbids the call.
    """
    cdef mmrt_numa_policy policy = _policy(mode, nodes)
    cdef mmrt_error error
    cdef _Restored restored = _Restored()
    restored.thread = threading.get_ident()
    check(mmrt_numa_get_policy(&restored.former, &error), &error)
    check(mmrt_numa_set_policy(&policy, &error), &error)
    return restored


@checked
def bind(memory, mode, nodes=(), *, move=False):
    """Sets the policy of the whole pages inside `memory`, a writable buffer (mbind).

    It counts for pages that nothing has touched yet; with `move`, those that are there move to suit
    it. The page cache ignores it: see place() for mapped files. Raises what set_policy() raises.
    """
    cdef mmrt_numa_policy policy = _policy(mode, nodes)
    cdef mmrt_error error
    cdef mmrt_status status
    cdef Py_buffer view
    cdef bool_t moving = bool(move)
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            status = mmrt_numa_bind(view.buf, view.len, &policy, moving, &error)
        check(status, &error)
    finally:
        PyBuffer_Release(&view)


# ---- where pages lie ----

@checked
def page_nodes(memory, offset=0, length=None):
    """The node of each page that `length` bytes from `offset` of `memory` touch: an int16 array.

    memory: a Tensor, a Mapping, or any other buffer; a length of None ends with it. -1 stands for a
    page that this process has not mapped, whether the page cache has it or not. ArgumentError for a
    range outside; UnsupportedError where the kernel has no NUMA or a container forbids the call.
    """
    import numpy

    cdef int16_t[::1] out
    cdef mmrt_error error
    cdef mmrt_status status
    cdef Py_buffer view
    cdef const char *start
    cdef uint64_t size
    if hasattr(memory, "blocks"):  # a Tensor, which is no buffer if NumPy lacks its type
        memory = memory.blocks()
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        if length is None:
            length = view.len - offset
        if offset < 0 or length < 0 or offset + length > view.len:
            raise ArgumentError(f"{length} bytes from {offset} lie outside {view.len} bytes")
        start = <const char *> view.buf + <Py_ssize_t> offset
        size = length
        nodes = numpy.empty(mmrt_numa_n_pages(start, size), numpy.int16)
        if nodes.size:
            out = nodes
            with nogil:
                status = mmrt_numa_pages(start, size, &out[0], &error)
            check(status, &error)
        return nodes
    finally:
        PyBuffer_Release(&view)


# ---- bringing threads and files to nodes ----

@checked
def bind_pool(Pool pool not None):
    """Spreads the threads of `pool` over the nodes, in runs and in proportion to the CPUs that this
    process may use there, binds each to its node's CPUs, and returns the node of each thread.

    The caller of a job, which is its first thread, is bound while the job runs. With one node to
    choose from the threads stay free.
    """
    cdef mmrt_error error
    cdef mmrt_status status
    cdef int *nodes = <int *> PyMem_Malloc(pool.threads * sizeof(int))
    if nodes is NULL:
        raise OutOfMemoryError("no memory for the nodes of a pool")
    try:
        with nogil:
            status = mmrt_numa_bind_pool(pool.handle, nodes, &error)
        check(status, &error)
        return [nodes[i] for i in range(pool.threads)]
    finally:
        PyMem_Free(nodes)


class Placement(NamedTuple):
    """How many pages were to lie on certain nodes, how many do, and how many lie elsewhere. Of the
    rest the system does not say, as in containers."""

    pages: int
    there: int
    elsewhere: int


def place(mapping, ranges):
    """Brings byte ranges of a mapping into the memory of their nodes and maps them.

    ranges: (offset, length, node) each; a page that two touch goes to either. A thread for each
    node reads, in the order given, as the page cache takes memory where the reading thread's policy
    says. Pages that were in memory before and lie elsewhere are moved, unless other processes map
    them too.

    On machines of several nodes faults read nothing ahead in this mapping from then on: they would
    read past the ranges' ends, into memory of the wrong node.

    Raises ArgumentError for ranges outside the mapping and nodes that are not there, FileError
    where the file cannot be read, UnsupportedError before Linux 5.14 or where a container forbids
    memory policies and no CPU of a node may be used. Signals are handled meanwhile.
    """
    cdef mmrt_numa_range *places
    cdef mmrt_error error
    cdef mmrt_status status
    cdef size_t i, n
    cdef pid_t begun
    cdef list raised = []
    cdef Mapping file = instance("mapping", mapping, Mapping, "a Mapping")
    wanted = _ranges(file, ranges)
    n = len(wanted)
    places = <mmrt_numa_range *> PyMem_Malloc((n or 1) * sizeof(mmrt_numa_range))
    if places is NULL:
        raise OutOfMemoryError(f"no memory for {n} ranges")
    try:
        for i in range(n):
            places[i].offset, places[i].length, places[i].node = wanted[i]
        begun = file.begin()
        with nogil:
            status = mmrt_numa_place(file.handle, places, n, poll, <void *> raised, &error)
        file.end(begun)
        check_polled(status, &error, raised)
        return Placement(
            sum(places[i].n_pages for i in range(n)),
            sum(places[i].n_there for i in range(n)),
            sum(places[i].n_elsewhere for i in range(n)),
        )
    finally:
        PyMem_Free(places)


@checked
def _ranges(mapping, ranges):
    return [_range(mapping, *one) for one in ranges]


def _range(mapping, offset, length, node):
    if offset < 0 or length < 0 or offset + length > mapping.size:
        raise ArgumentError(
            f"{length} bytes from {offset} lie outside {mapping.path}, of {mapping.size} bytes"
        )
    return offset, length, _node(node)
