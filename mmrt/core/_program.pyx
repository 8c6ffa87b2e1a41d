"""Programs, as the core knows them: weights, buffers, operations, steps."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from mmrt.core._c cimport (
    MMRT_EXACT_TOKENS, mmrt_error, mmrt_mark, mmrt_op, mmrt_op_init, mmrt_op_set, mmrt_part,
    mmrt_program_add_buffer,
    mmrt_program_add_op, mmrt_program_add_rope, mmrt_program_add_weight, mmrt_program_create,
    mmrt_program_finish, mmrt_program_free, mmrt_program_run, mmrt_program_scratch_bytes,
    mmrt_program_shares, mmrt_state_length, mmrt_status, mmrt_weight,
)
from mmrt.core._c cimport (  # streaming
    MMRT_NO_MEMORY, MMRT_POLICY_LRU, mmrt_demand_stats, mmrt_mapping, mmrt_plan,
    mmrt_program_bank_stats, mmrt_program_banks, mmrt_program_forget_columns,
    mmrt_program_lock_kept, mmrt_program_plan,
    mmrt_program_set_budget, mmrt_program_set_policy, mmrt_program_set_reader,
    mmrt_program_stream, mmrt_program_stream_stats, mmrt_reader, mmrt_reader_name,
    mmrt_stream_stats,
)
from mmrt.core._calls cimport calls_begin, calls_end, calls_now, pid_t
from mmrt.core._status cimport check, check_polled, poll
from mmrt.core.kernels cimport Pool, chosen_isa
from mmrt.core.mapping cimport Mapping
from mmrt.core.readers cimport reader_named
from mmrt.core.state cimport Cache, StateStore
from mmrt.core.tensor cimport Tensor

from array import array
from typing import NamedTuple

from mmrt.core.arguments import checked
from mmrt.errors import ArgumentError, InUseError, UnsupportedError
from mmrt.core.streaming import Demand, Plan, Streaming

# Tokens of an exact step of a program that is not exact itself, at most.
EXACT_TOKENS = MMRT_EXACT_TOKENS


class Matrix(NamedTuple):
    """A weight (rows, width) as a program multiplies with it: weight @ x * scale + bias (rows,).

    Or a stack of experts' matrices (experts, rows, width), whose biases are (experts, rows); scale
    may have one for each expert (experts,).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float | Tensor = 1.0


class Part(NamedTuple):
    """What a step reads into one text: int32 tokens, and of how many of them, the last, logits are
    wanted. exact: the whole step, of EXACT_TOKENS at most, is computed as by an exact program."""

    cache: Cache
    tokens: object
    outputs: int = 0
    exact: bool = False


cdef class CoreProgram:
    """Operations on numbered buffers, built once and run for each step of texts in `store`.

    exact: what is computed for a token does not depend on the other tokens of its step. str()
    lists the operations with the tensors and bytes that each reads.
    """

    def __cinit__(self, Pool pool not None, int max_tokens, StateStore store not None,
                  bint exact=False):
        cdef mmrt_error error
        self.pool = pool
        self.max_tokens = max_tokens
        self.tensors = []
        self.names = []
        self.indices = {}
        self.lines = []
        self.routes = []
        self.store = store
        check(
            mmrt_program_create(
                chosen_isa(), max_tokens, store.handle, exact, &self.handle, &error
            ),
            &error,
        )

    def __dealloc__(self):
        self._release()

    cdef _release(self):
        mmrt_program_free(self.handle)
        self.handle = NULL
        for tensor in self.tensors or ():
            (<Tensor> tensor).mapping.unpin()
        self.tensors = []

    def close(self):
        """Frees the scratch and lets go of the weights' file. Raises InUseError during a step."""
        if calls_now(&self.running):
            raise InUseError("the model is running in another thread")
        self._release()

    # ---- building ----

    cdef mmrt_program *_open(self) except NULL:
        if self.handle is NULL:
            raise ArgumentError("the program is closed")
        return self.handle

    cdef int _weight(self, Tensor tensor) except -2:
        cdef mmrt_weight weight
        cdef mmrt_error error
        cdef int32_t index
        if tensor is None:
            return -1
        if tensor.name in self.indices:
            return self.indices[tensor.name]
        tensor.check_readable()
        if len(tensor.shape) not in (1, 2, 3):
            raise UnsupportedError(f"tensor {tensor.name}: shape {tensor.shape} is no matrix")
        if tensor.format is NULL:
            raise UnsupportedError(f"tensor {tensor.name}: no operation reads {tensor.type}")
        name = tensor.name.encode()
        tensor.mapping.pin()
        try:
            weight.data = tensor.data()
            weight.type = tensor.format.id
            weight.stack = tensor.shape[0] if len(tensor.shape) == 3 else 1
            weight.rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
            weight.cols = tensor.shape[-1]
            weight.name = name
            check(mmrt_program_add_weight(self._open(), &weight, &index, &error), &error)
        except BaseException:
            tensor.mapping.unpin()
            raise
        self.tensors.append(tensor)
        self.names.append(name)
        self.indices[tensor.name] = index
        return index

    def buffer(self, width, per_token=1):
        """A new buffer, of per_token columns of `width` values a token; returns its number."""
        cdef mmrt_error error
        cdef int32_t index
        check(mmrt_program_add_buffer(self._open(), width, per_token, &index, &error), &error)
        return index

    def rope_table(self, frequencies, float magnitude=1.0):
        """Angles position * frequencies[i] (float64, one for each pair of elements)."""
        import numpy

        cdef mmrt_error error
        cdef int32_t index
        cdef const double[::1] values = numpy.ascontiguousarray(frequencies, numpy.float64)
        if not values.shape[0]:
            raise ArgumentError("rotations of no pairs")
        check(
            mmrt_program_add_rope(
                self._open(), &values[0], values.shape[0], magnitude, &index, &error
            ),
            &error,
        )
        return index

    def append(self, str kind not None, str note not None, weights=(), /, **fields):
        """Appends an operation of this kind (csrc/graph/ops.def): its weights, each a Tensor, a
        Matrix or None, and its fields; in_ stands for `in`. note: what str() calls it."""
        cdef mmrt_op op
        cdef mmrt_error error
        cdef list read = []
        if len(weights) > 3:
            raise ArgumentError(f"{kind}: takes at most 3 weights, not {len(weights)}")
        check(mmrt_op_init(kind.encode(), &op, &error), &error)
        for name, value in fields.items():
            check(mmrt_op_set(&op, name.rstrip("_").encode(), value, &error), &error)
        for i, matrix in enumerate(weights):
            weight, bias, scale = matrix if isinstance(matrix, Matrix) else Matrix(matrix)
            op.weights[i] = self._weight(weight)
            op.biases[i] = self._weight(bias)
            scales = scale if isinstance(scale, Tensor) else None
            op.stack_scales[i] = self._weight(scales)
            op.scales[i] = scale if scales is None else 1
            read += [tensor for tensor in (weight, bias, scales) if tensor is not None]
        check(mmrt_program_add_op(self._open(), &op, &error), &error)
        if kind == "route":
            self.routes.append((len(self.lines), fields["n_used"]))
        self.lines.append((note, read))

    def finish(self):
        """Allocates scratch; the program can run from now on."""
        cdef mmrt_error error
        check(mmrt_program_finish(self._open(), self.pool.threads, &error), &error)

    # ---- streaming ----

    def stream(self):
        """Makes the finished program's weights ones that set_budget() can keep or stream."""
        cdef mmrt_error error
        cdef list mappings = list({id(t.mapping): t.mapping for t in self.tensors}.values())
        cdef mmrt_mapping **files = <mmrt_mapping **> calloc(len(mappings), sizeof(mmrt_mapping *))
        cdef mmrt_status status
        if files is NULL:
            raise MemoryError
        for i, mapping in enumerate(mappings):
            files[i] = (<Mapping> mapping).handle
        status = mmrt_program_stream(self._open(), files, len(mappings), &error)
        free(files)
        check(status, &error)
        self.streams = True

    @checked
    def set_reader(self, str reader not None):
        """Has streamed weights read in one of the ways in mmrt.streaming.READERS; at first,
        "mapped".

        Raises UnsupportedError, and changes nothing, where the files cannot be read in that way.
        """
        cdef mmrt_error error
        cdef mmrt_status status
        cdef mmrt_reader kind = reader_named(reader)
        self._open()
        cdef pid_t begun = calls_begin(&self.running)
        with nogil:
            status = mmrt_program_set_reader(self.handle, kind, &error)
        calls_end(&self.running, begun)
        check(status, &error)

    @checked
    def set_budget(self, uint64_t budget):
        """Keeps as much of the matrices in memory as fits into `budget` bytes, with the ring that
        the others are streamed through.

        Waits for a step that runs. OutOfMemoryError, naming the least that would do, changes
        nothing.
        """
        cdef mmrt_error error
        cdef mmrt_status status
        self._open()
        cdef pid_t begun = calls_begin(&self.running)
        with nogil:
            status = mmrt_program_set_budget(self.handle, budget, &error)
        calls_end(&self.running, begun)
        check(status, &error)

    def lock_kept(self):
        """From now on locks what is kept in memory when it has been loaded, as far as
        RLIMIT_MEMLOCK allows."""
        cdef mmrt_error error
        cdef mmrt_status status
        self._open()
        cdef pid_t begun = calls_begin(&self.running)
        with nogil:
            status = mmrt_program_lock_kept(self.handle, &error)
        calls_end(&self.running, begun)
        check(status, &error)

    def forget_columns(self):
        """Forgets the columns that have been read on demand: the next step reads all that it needs,
        which tells what it is worth to keep them. Waits for a step that runs."""
        cdef mmrt_error error
        cdef mmrt_status status
        self._open()
        cdef pid_t begun = calls_begin(&self.running)
        with nogil:
            status = mmrt_program_forget_columns(self.handle, &error)
        calls_end(&self.running, begun)
        check(status, &error)

    @checked
    def plan(self, uint64_t budget):
        """What set_budget() would do: a Plan. Too small a budget keeps nothing, and is told by the
        plan's `least`."""
        cdef mmrt_error error
        cdef mmrt_plan plan
        cdef mmrt_status status
        cdef uint64_t *kept
        self._open()
        kept = <uint64_t *> calloc(len(self.tensors) + 1, sizeof(uint64_t))
        if kept is NULL:
            raise MemoryError
        try:
            status = mmrt_program_plan(self.handle, budget, &plan, kept, &error)
            if status != MMRT_NO_MEMORY:
                check(status, &error)
            by_tensor = {t.name: kept[i] for i, t in enumerate(self.tensors)}
        finally:
            free(kept)
        return Plan(
            plan.total, plan.kept, plan.ring, plan.request, plan.experts, plan.chosen,
            plan.n_experts, plan.cache, plan.slots, plan.rest, plan.least, plan.most, by_tensor,
            plan.columns,
        )

    @property
    def streaming(self):
        """What streaming has done so far: a Streaming, or None for a program that does not."""
        cdef mmrt_stream_stats s
        if self.handle is NULL or not self.streams:
            return None
        mmrt_program_stream_stats(self.handle, &s)
        return Streaming(
            mmrt_reader_name(s.reader).decode(), s.kept_bytes, s.locked_bytes,
            s.streamed_bytes, s.ring_bytes, s.steps,
            s.read_bytes, s.loaded_bytes, s.stall_seconds, s.busy_seconds,
            s.cache_bytes, _demand(&s.demand), _demand(&s.columns),
        )

    @property
    def demand(self):
        """(a tensor of its experts, Demand) of each layer whose experts come on demand."""
        cdef mmrt_demand_stats stats
        cdef int32_t weight
        found = []
        for i in range(mmrt_program_banks(self.handle) if self.handle is not NULL else 0):
            mmrt_program_bank_stats(self.handle, i, &weight, &stats)
            found.append((self.tensors[weight], _demand(&stats)))
        return found

    def evict_least_recent(self):
        """From now on an expert takes the place of the one that was used longest ago, whatever
        their scores are."""
        cdef mmrt_error error
        check(mmrt_program_set_policy(self._open(), MMRT_POLICY_LRU, &error), &error)

    # ---- use ----

    @checked
    def step_bytes(self, uint32_t n):
        """Bytes of scratch that steps of `n` tokens take."""
        return 0 if self.handle is NULL else mmrt_program_scratch_bytes(self.handle, n)

    @property
    def weights(self):
        """The tensors in the order in which the program first reads them."""
        return list(self.tensors)

    @property
    def operations(self):
        """(what it does, the tensors it reads) of each operation, in order."""
        return [(note, list(tensors)) for note, tensors in self.lines]

    @checked
    def shares(self, Tensor tensor not None):
        """Which rows of a weight each thread multiplies with: rows shares[t] to shares[t + 1] - 1
        are thread t's, but for those that a thread which is done early takes over at the end.

        None if the program does not multiply with it. ArgumentError if it does not read it.
        """
        if tensor.name not in self.indices:
            raise ArgumentError(f"the program does not read tensor {tensor.name!r}")
        rows = array("Q", bytes(8 * (self.pool.threads + 1)))
        cdef uint64_t[::1] view = rows
        if not mmrt_program_shares(
            self._open(), self.indices[tensor.name], self.pool.threads, &view[0]
        ):
            return None
        return rows.tolist()

    def run(self, parts not None, float[:, ::1] logits=None, int64_t[:, ::1] marks=None,
            int32_t[::1] choices=None, const float[:, ::1] rows=None):
        """One step, a reading of the weights for all of its Parts.

        Appends the tokens of each part to its cache, which may come more than once; 1 to max_tokens
        in all. logits, float32 (sum of outputs, vocabulary), receives those that the parts want, in
        order; None where none are wanted. Releases the GIL; signals are handled meanwhile, and
        what their handlers raise ends the step. After any exception the caches are as they were
        before.

        marks, int64 (marks, 5), may say when to take note: its first column holds numbers of
        operations, which rise; -1 is before the first, others are after the operation. The rest of
        the row receives the time (as time.monotonic_ns() tells it), and of the process so far the
        minor faults, the major faults and the bytes read from storage.

        choices, int32 (tokens of the step times the sum of n_used in `routes`,), receives the
        experts that each token is sent to, the best first: (tokens, n_used) for each operation in
        `routes`, tokens without logits before the others. What none chooses for stays as it is.

        rows, float32 (tokens of the step, taken): what a program that begins with take() reads. Of
        one that ends with give(), logits receive hidden rows (tokens of the step, given). Both have
        tokens without logits before the others: what one gives another takes, with the same parts.
        """
        cdef mmrt_part *given = <mmrt_part *> calloc(len(parts) + 1, sizeof(mmrt_part))
        cdef const int32_t[::1] tokens
        cdef int64_t outputs = 0
        if given is NULL:
            raise MemoryError
        try:
            ids = array("i")
            caches = []
            for i, (cache, tokens, n_outputs, exact) in enumerate(parts):
                caches.append(cache)
                ids.extend(tokens)
                given[i].n = tokens.shape[0]
                given[i].n_outputs = n_outputs
                given[i].exact = exact
                outputs += n_outputs
            n_rows, width = len(ids) if self.given else outputs, self.given or self.vocab_size
            room = 0 if logits is None else logits.shape[0]
            if room != n_rows or (room and logits.shape[1] != width):
                raise ArgumentError(f"logits: no room of shape ({n_rows}, {width})")
            if (0 if rows is None else rows.shape[0]) != (len(ids) if self.taken else 0) or (
                self.taken and rows.shape[1] != self.taken
            ):
                raise ArgumentError(f"rows: not of shape ({len(ids)}, {self.taken})")
            self._run(caches, given, ids, logits, marks, choices, rows)
        finally:
            free(given)

    cdef _run(self, list caches, mmrt_part *parts, const int32_t[::1] tokens,
              float[:, ::1] logits, int64_t[:, ::1] marks, int32_t[::1] choices,
              const float[:, ::1] rows):
        cdef mmrt_error error
        cdef mmrt_status status
        cdef list raised = []
        cdef Cache cache
        cdef int32_t n_parts = len(caches), n_marks = 0
        cdef mmrt_mark *first_mark = NULL
        cdef float *to = NULL if logits is None or not logits.shape[0] else &logits[0, 0]
        if self.handle is NULL:
            raise ArgumentError("the model is closed")
        if not tokens.shape[0]:
            raise ArgumentError("a step without tokens")
        cdef const float *taken = &rows[0, 0] if self.taken else NULL
        cdef int32_t *first_choice = NULL
        if choices is not None:
            room = tokens.shape[0] * sum([n_used for _, n_used in self.routes])
            if choices.shape[0] != room or not room:
                raise ArgumentError(f"choices: room for {choices.shape[0]}, and there are {room}")
            first_choice = &choices[0]
        if marks is not None and marks.shape[0]:
            _check_marks(marks, len(self.lines))
            first_mark, n_marks = <mmrt_mark *> &marks[0, 0], marks.shape[0]
        for cache in caches:
            cache.require_rest()
        for i, cache in enumerate(caches):
            cache.before = mmrt_state_length(cache.handle)
            parts[i].state = cache.handle
        cdef pid_t begun = calls_begin(&self.running)
        for cache in caches:
            calls_begin(&cache.busy)
        cdef uint32_t at = 0
        try:
            with nogil:
                status = mmrt_program_run(
                    self.handle, self.pool.handle, parts, n_parts, &tokens[0], taken, to,
                    first_mark, n_marks, first_choice, poll, <void *> raised, &error,
                )
            check_polled(status, &error, raised)
            for i, cache in enumerate(caches):  # here, where no signal handler can come between
                for _ in range(parts[i].n):
                    cache.ids.append(tokens[at])
                    at += 1
        except BaseException:
            for cache in caches:
                cache.cut(cache.before)
            raise
        finally:
            calls_end(&self.running, begun)
            for cache in caches:
                calls_end(&cache.busy, begun)

    def __repr__(self):
        state = "closed" if self.handle is NULL else f"{len(self.lines)} operations"
        return f"<Program, {state}>"

    def __str__(self):
        rows = []
        for note, tensors in self.lines:
            names = ", ".join(tensor.name for tensor in tensors)
            size = sum(tensor.nbytes for tensor in tensors)
            rows.append(f"{len(rows):4}  {note:32}  {size:>12,}  {names}" if tensors else
                        f"{len(rows):4}  {note}")
        return "\n".join([f"{'#':>4}  {'operation':32}  {'bytes read':>12}  tensors", *rows])


cdef _demand(const mmrt_demand_stats *s):
    return Demand(
        s.wanted, s.found, s.read_units, s.read_bytes, s.stall_seconds, s.slots, s.slot_bytes
    )


cdef int _check_marks(int64_t[:, ::1] marks, int64_t n_operations) except -1:
    cdef int64_t before = -2
    if marks.shape[1] * sizeof(int64_t) != sizeof(mmrt_mark):
        raise ArgumentError(f"marks have {sizeof(mmrt_mark) // sizeof(int64_t)} columns")
    for i in range(marks.shape[0]):
        if not before < marks[i, 0] < n_operations:
            raise ArgumentError(f"marks: operations from -1 to {n_operations - 1} that rise")
        before = marks[i, 0]
    return 0
