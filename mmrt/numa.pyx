"""Machines of several memory nodes: what they are, where memory comes from, and where it lies.

To keep every matrix row in the memory of the node whose threads read it:

    nodes = mmrt.numa.bind_pool(pool)      # the node of each thread
    mmrt.numa.place(file, nodes)           # rows, shared out as the threads share them

Both do the right thing on a machine of one node: little.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int16_t, uint64_t

from mmrt._c cimport (
    MMRT_NUMA_MODE_COUNT, MMRT_SET_LIMIT, bool_t, mmrt_error, mmrt_numa_allowed, mmrt_numa_bind,
    mmrt_numa_get_policy, mmrt_numa_mode, mmrt_numa_mode_name, mmrt_numa_n_pages,
    mmrt_numa_pages, mmrt_numa_place, mmrt_numa_policy, mmrt_numa_range, mmrt_numa_read,
    mmrt_numa_run_on, mmrt_numa_set_policy, mmrt_numa_topology, mmrt_pool_bind, mmrt_set,
    mmrt_set_add, mmrt_set_has, mmrt_status,
)
from mmrt._status cimport check
from mmrt.kernels cimport Pool
from mmrt.mapping cimport Mapping

import operator
import os
import threading
from collections import abc
from dataclasses import dataclass
from typing import NamedTuple

from mmrt.errors import ArgumentError, OutOfMemoryError
from mmrt.tensor import Tensor

# The names of the policies, in the kernel's order.
MODES = tuple(
    mmrt_numa_mode_name(<mmrt_numa_mode> mode).decode() for mode in range(MMRT_NUMA_MODE_COUNT)
)


# ---- sets of numbers ----

cdef int _fill(mmrt_set *out, numbers, str what) except -1:
    for number in [numbers] if isinstance(numbers, int) else numbers:
        i = operator.index(number)
        if not 0 <= i < MMRT_SET_LIMIT:
            raise ArgumentError(f"there is no {what} {i}")
        mmrt_set_add(out, i)
    return 0


cdef tuple _numbers(const mmrt_set *set):
    return tuple(i for i in range(MMRT_SET_LIMIT) if mmrt_set_has(set, i))


# ---- topology ----

@dataclass(frozen=True)
class Node:
    """A memory node. A node may have no CPUs, or no memory."""

    id: int
    cpus: tuple  # online
    total: int  # bytes of memory
    free: int
    distances: dict  # node id -> distance as the firmware gives it; 10 is local


@dataclass(frozen=True)
class Topology:
    """The online nodes, and the ids of those whose memory this process may use."""

    nodes: tuple
    allowed: tuple

    def __str__(self):
        return "\n".join(
            f"node {node.id}: {len(node.cpus)} CPUs, {node.total >> 20} MiB, "
            f"{node.free >> 20} MiB free"
            for node in self.nodes
        )


def topology(root=None):
    """The machine's nodes: a Topology. Without NUMA there is one node, 0.

    root: a folder to read in place of /sys/devices/system/node. FormatError where it makes no
    sense.
    """
    cdef mmrt_numa_topology found
    cdef mmrt_set allowed
    cdef mmrt_error error
    cdef int i, other
    cdef bytes folder = b"" if root is None else os.fsencode(root)
    check(mmrt_numa_read(<const char *> folder if folder else NULL, &found, &error), &error)
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
    mmrt_numa_allowed(&allowed)
    ids = {node.id for node in nodes}
    return Topology(nodes, tuple(i for i in _numbers(&allowed) if i in ids) or tuple(sorted(ids)))


# ---- policies ----

class Policy(NamedTuple):
    """A name from MODES, and the nodes that it is about."""

    mode: str
    nodes: tuple


cdef mmrt_numa_policy _policy(mode, nodes) except *:
    cdef mmrt_numa_policy policy = mmrt_numa_policy(<mmrt_numa_mode> 0, mmrt_set([0] * 16), 0)
    if mode not in MODES:
        raise ArgumentError(f"a memory policy is one of {', '.join(MODES)}; not {mode!r}")
    policy.mode = <mmrt_numa_mode> <int> MODES.index(mode)
    _fill(&policy.nodes, nodes, "node")
    return policy


def get_policy():
    """The calling thread's Policy."""
    cdef mmrt_numa_policy policy
    cdef mmrt_error error
    check(mmrt_numa_get_policy(&policy, &error), &error)
    return Policy(MODES[policy.mode], _numbers(&policy.nodes))


cdef class _Restored:
    """As a context manager: puts the thread's former policy back at the end."""

    cdef mmrt_numa_policy former
    cdef object thread

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        cdef mmrt_error error
        if threading.get_ident() != self.thread:
            raise ArgumentError("a memory policy belongs to the thread that set it")
        check(mmrt_numa_set_policy(&self.former, &error), &error)


def set_policy(mode, nodes=()):
    """Says where memory comes from that the calling thread is the first to touch, from now on, or
    until the end of the block if it is called in a `with` statement.

    "preferred" takes one node, and uses others when it is full; "preferred-many" several. "bind"
    uses these nodes alone. "interleave" takes pages from these nodes in turn, and
    "weighted-interleave" in proportion to /sys/kernel/mm/mempolicy/weighted_interleave. "local"
    takes the node that the thread runs on, and so does "default", which means no policy. The
    page cache follows the policy of the thread that reads a page in.

    Raises ArgumentError for other words and for nodes that do not fit or may not be used,
    UnsupportedError where this kernel does not know the policy or a container forbids the call.
    """
    cdef mmrt_numa_policy policy = _policy(mode, nodes)
    cdef mmrt_error error
    cdef _Restored restored = _Restored()
    restored.thread = threading.get_ident()
    check(mmrt_numa_get_policy(&restored.former, &error), &error)
    check(mmrt_numa_set_policy(&policy, &error), &error)
    return restored


def bind(memory, mode, nodes=()):
    """Sets the policy of the whole pages inside `memory`, an anonymous buffer (mbind).

    It counts for pages that nothing has touched yet. The page cache ignores it: see place() for
    mapped files. Raises what set_policy() raises.
    """
    cdef mmrt_numa_policy policy = _policy(mode, nodes)
    cdef mmrt_error error
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        check(mmrt_numa_bind(view.buf, view.len, &policy, &error), &error)
    finally:
        PyBuffer_Release(&view)


class run_on:
    """Confines the calling thread to the CPUs of `node` that it may use; a context manager that
    ends that. ArgumentError where there are none."""

    def __init__(self, node):
        cdef mmrt_error error
        self.former = os.sched_getaffinity(0)
        check(mmrt_numa_run_on(_node(node), &error), &error)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.sched_setaffinity(0, self.former)


def bind_pool(Pool pool not None):
    """Spreads the threads of `pool` over the nodes, in runs and in proportion to the CPUs that this
    process may use, binds each to its node's CPUs, and returns the node of each thread.

    On a machine of one node the threads stay free.
    """
    cdef mmrt_set *sets
    cdef mmrt_error error
    cdef mmrt_status status
    machine = topology()
    mine = os.sched_getaffinity(0)
    usable = [
        (node.id, cpus)
        for node in machine.nodes
        if node.id in machine.allowed and (cpus := mine.intersection(node.cpus))
    ]
    if len(machine.nodes) == 1 or not usable:
        return [machine.allowed[0]] * pool.threads
    seats = [i for i, (_, cpus) in enumerate(usable) for _ in cpus]
    spread = [usable[seats[(2 * t + 1) * len(seats) // (2 * pool.threads)]]
              for t in range(pool.threads)]

    sets = <mmrt_set *> PyMem_Malloc(pool.threads * sizeof(mmrt_set))
    if sets is NULL:
        raise OutOfMemoryError("no memory for the CPUs of a pool")
    try:
        for t, (_, cpus) in enumerate(spread):
            sets[t] = mmrt_set([0] * 16)
            _fill(&sets[t], cpus, "CPU")
        with nogil:
            status = mmrt_pool_bind(pool.handle, sets, &error)
        check(status, &error)
    finally:
        PyMem_Free(sets)
    return [node for node, _ in spread]


# ---- where pages lie ----

def pages(memory, offset=0, length=None):
    """The node of each page that `length` bytes from `offset` of `memory` touch: an int16 array.

    memory: a Tensor, a Mapping, or any other buffer. -1 stands for a page that this process has
    not mapped, whether the page cache has it or not. UnsupportedError where the kernel was built
    without NUMA or a container forbids the call.
    """
    import numpy

    cdef int16_t[::1] out
    cdef mmrt_error error
    cdef mmrt_status status
    cdef Py_buffer view
    cdef const char *start
    cdef uint64_t size
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


# ---- placing files ----

class Placement(NamedTuple):
    """Pages that were to lie somewhere, and those of them that do. A page that two ranges of
    different nodes touch can please only one of them."""

    pages: int
    placed: int


def place_ranges(Mapping mapping not None, ranges, *, strict=False):
    """Reads byte ranges of a mapped file into the memory of their nodes: a Placement.

    ranges: (offset, length, node) each. A thread for each node reads, in the order given, for the
    page cache takes memory where the reading thread's policy says; it maps the pages as it goes.
    Pages that were in memory before and lie elsewhere are moved, unless other processes map them
    too. A full node passes pages on to others; strict: it drops what else it has of the page cache
    instead.

    On machines of several nodes read-ahead is off for this mapping from then on: it would read
    past the ranges' ends, into memory of the wrong node.

    Raises ArgumentError for ranges outside the file and nodes that are not there, UnsupportedError
    where several nodes are but a container forbids memory policies, or before Linux 5.14, FileError
    where the file cannot be read.
    """
    cdef mmrt_numa_range *places
    cdef mmrt_error error
    cdef mmrt_status status
    cdef bool_t is_strict = bool(strict)
    cdef size_t i, n
    wanted = [_range(mapping, *one) for one in ranges]
    n = len(wanted)
    places = <mmrt_numa_range *> PyMem_Malloc((n or 1) * sizeof(mmrt_numa_range))
    if places is NULL:
        raise OutOfMemoryError(f"no memory for {n} ranges")
    try:
        for i in range(n):
            places[i].offset, places[i].length, places[i].node = wanted[i]
        mapping.pin()
        with nogil:
            status = mmrt_numa_place(mapping.handle, places, n, is_strict, &error)
        mapping.unpin()
        check(status, &error)
        return Placement(
            sum(
                mmrt_numa_n_pages(<const void *> <size_t> places[i].offset, places[i].length)
                for i in range(n)
            ),
            sum(places[i].n_there for i in range(n)),
        )
    finally:
        PyMem_Free(places)


cdef int _node(node) except -1:
    i = operator.index(node)
    if not 0 <= i < MMRT_SET_LIMIT:
        raise ArgumentError(f"there is no node {i}")
    return i


def _range(mapping, offset, length, node):
    if offset < 0 or length < 0 or offset + length > mapping.size:
        raise ArgumentError(
            f"{length} bytes from {offset} lie outside {mapping.path}, of {mapping.size} bytes"
        )
    return offset, length, _node(node)


def place(tensors, assignment, *, strict=False):
    """Reads tensors into the memory of chosen nodes and maps them: a Placement.

    tensors: a file, a Tensor, or several. assignment: for all alike, or by tensor name (those
    without an entry are left as they are):
    - a node: for the whole tensor;
    - a list of nodes, one for each thread that will multiply: the rows are cut into as many equal
      runs as threads cut them into, and run i goes to node i. bind_pool() returns such a list.

    The rest is as in place_ranges().
    """
    if isinstance(tensors, Tensor):
        tensors = [tensors]
    elif isinstance(tensors, abc.Mapping):
        tensors = tensors.values()
    tensors = list(tensors)
    if isinstance(assignment, abc.Mapping):
        unknown = assignment.keys() - {tensor.name for tensor in tensors}
        if unknown:
            raise ArgumentError(f"there is no tensor {min(unknown)!r} to place")
        tensors = [tensor for tensor in tensors if tensor.name in assignment]

    by_mapping = {}
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        nodes = assignment[tensor.name] if isinstance(assignment, abc.Mapping) else assignment
        runs = by_mapping.setdefault(tensor.mapping, [])
        for offset, length, node in _runs(tensor, [nodes] if isinstance(nodes, int) else nodes):
            _append(runs, offset, length, node)
    done = [place_ranges(mapping, runs, strict=strict) for mapping, runs in by_mapping.items()]
    return Placement(sum(one.pages for one in done), sum(one.placed for one in done))


def _runs(tensor, nodes):
    """The tensor's rows in len(nodes) runs, as (offset, length, node)."""
    nodes = list(nodes)
    if not nodes:
        raise ArgumentError(f"no nodes are given for tensor {tensor.name!r}")
    rows = 1
    for n in tensor.shape[:-1]:
        rows *= n
    row = tensor.nbytes // rows if rows else 0
    for i, node in enumerate(nodes):
        first, end = rows * i // len(nodes), rows * (i + 1) // len(nodes)
        yield tensor.offset + first * row, (end - first) * row, node


# Bytes between two tensors that only align the second.
_PADDING = 4096


def _append(runs, offset, length, node):
    """Adds a range, as the end of the last one if they adjoin: a boundary can split a page."""
    if not length:
        return
    if runs and runs[-1][2] == node and 0 <= offset - sum(runs[-1][:2]) < _PADDING:
        offset, length = runs[-1][0], offset + length - runs[-1][0]
        runs.pop()
    runs.append((offset, length, node))
