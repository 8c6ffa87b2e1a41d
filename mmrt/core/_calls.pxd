"""Calls that go on in an object just now, by whatever threads; under the GIL.

A fork copies the number, but of the threads that it counts only its own: so the number is that of
one process, and what began in another does not count.
"""

from posix.unistd cimport getpid, pid_t


cdef struct calls:
    int n
    pid_t process


cdef inline pid_t calls_begin(calls *c) noexcept:
    """What calls_end() is to be given."""
    cdef pid_t process = getpid()
    if c.process != process:
        c.n = 0
        c.process = process
    c.n += 1
    return process


cdef inline void calls_end(calls *c, pid_t begun) noexcept:
    if c.process == begun:
        c.n -= 1


cdef inline int calls_now(const calls *c) noexcept:
    return c.n if c.process == getpid() else 0
