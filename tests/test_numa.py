"""Memory nodes: on this machine, as a rule one of a single node, and on two nodes in a guest."""

import mmap
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import HOME, STORY, call
from machine import allowed_nodes, evict, needs_memory_policies
from numa import guest
from pages import PAGE, write_file

import mmrt
from mmrt import numa as nodes
from mmrt.core.kernels import Pool
from mmrt.core.mapping import Mapping
from mmrt.errors import (
    ArgumentError,
    FileError,
    FormatError,
    OutOfMemoryError,
    UnsupportedError,
)
from mmrt.files.policies import numa as policy

MACHINE = nodes.topology()
NODE = MACHINE.allowed[0]


@pytest.fixture
def memory() -> mmap.mmap:
    """Four pages that nothing has touched."""
    return mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_file(tmp_path / "weights.bin", bytes(range(256)) * (10 * PAGE // 256) + b"tail")


@pytest.fixture
def policies() -> None:
    """Skips the test where memory policies are forbidden, as in containers."""
    needs_memory_policies()


# ---- topology ----


def test_this_machine_has_a_node_with_memory() -> None:
    assert MACHINE.allowed and set(MACHINE.allowed) <= {node.id for node in MACHINE.nodes}
    for node in MACHINE.nodes:
        assert 0 <= node.free <= node.total and node.distances.keys() >= {node.id}
        assert f"node {node.id}: {len(node.cpus)} CPUs" in str(MACHINE)
    assert {cpu for node in MACHINE.nodes for cpu in node.cpus} >= os.sched_getaffinity(0)


def test_a_topology_is_what_its_folder_says(tmp_path: Path) -> None:
    for node, cpus, kilobytes in ((0, "0-1,4", 4096), (3, "", 2048), (4, "2-3", 0)):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        (folder / "cpulist").write_text(f"{cpus}\n")
        (folder / "meminfo").write_text(
            f"Node {node} MemTotal: {kilobytes} kB\nNode {node} MemFree: 1024 kB\n"
        )
        (folder / "distance").write_text("10 20 30\n")
    (tmp_path / "online").write_text("0,3-4\n")
    found = nodes.topology(tmp_path)
    assert [node.id for node in found.nodes] == [0, 3, 4] and found.allowed == (0, 3)
    assert [node.cpus for node in found.nodes] == [(0, 1, 4), (), (2, 3)]
    assert found.nodes[0].total == 4 << 20 and found.nodes[0].free == 1 << 20
    assert found.nodes[1].distances == {0: 10, 3: 20, 4: 30}
    assert "node 4: 2 CPUs, 0 MiB, 1 MiB free, not allowed" in str(found)

    (tmp_path / "node3/cpulist").write_text("0-1,two\n")
    with pytest.raises(FormatError, match=r"node3/cpulist: '0-1,two' is no list of numbers"):
        nodes.topology(str(tmp_path))


def test_without_a_topology_there_is_one_node(tmp_path: Path) -> None:
    (node,) = nodes.topology(tmp_path).nodes
    assert node.id == 0 and set(node.cpus) == os.sched_getaffinity(0) and node.total > 0


# ---- policies ----


@pytest.mark.usefixtures("policies")
def test_a_policy_lasts_for_its_block() -> None:
    before = nodes.get_policy()
    with nodes.set_policy("interleave", [NODE]):
        assert nodes.get_policy() == ("interleave", (NODE,))
        with nodes.set_policy("bind", NODE):
            assert nodes.get_policy() == ("bind", (NODE,))
        with pytest.raises(KeyError), nodes.set_policy("local"):
            assert nodes.get_policy() == ("local", ())
            raise KeyError
        assert nodes.get_policy() == ("interleave", (NODE,))
    assert nodes.get_policy() == before


@pytest.mark.usefixtures("policies")
@pytest.mark.parametrize("mode", nodes.MODES)
def test_every_policy_can_be_set_or_is_said_to_be_unknown(mode: str, memory: mmap.mmap) -> None:
    wanted = () if mode in ("default", "local") else (NODE,)
    try:
        with nodes.set_policy(mode, wanted):  # type: ignore[arg-type]
            assert nodes.get_policy() == (mode, wanted)
        nodes.bind(memory, mode, wanted)  # type: ignore[arg-type]
    except UnsupportedError as refused:
        assert mode in ("preferred_many", "weighted_interleave")
        assert f"{mode} needs Linux" in str(refused)


@pytest.mark.usefixtures("policies")
def test_a_policy_belongs_to_its_thread() -> None:
    found = []
    with nodes.set_policy("bind", NODE) as policy:
        thread = threading.Thread(target=lambda: found.append(end(policy)))
        thread.start()
        thread.join()
        assert nodes.get_policy().mode == "bind"
    assert found == ["a memory policy belongs to the thread that set it"]


def end(policy: object) -> str:
    with pytest.raises(ArgumentError) as refused:
        policy.__exit__(None, None, None)  # type: ignore[attr-defined]
    return str(refused.value)


@pytest.mark.parametrize(
    ("mode", "of", "words"),
    [
        ("bind", (), "bind takes at least one node"),
        ("interleave", [], "interleave takes at least one node"),
        ("preferred", (), "preferred takes at least one node"),
        ("local", (0,), "local takes no nodes"),
        ("default", 0, "default takes no nodes"),
        ("bind", 1023, "there is no node 1023"),
        ("bind", [NODE, 1022], "there is no node 1022"),
        ("bind", 1024, "there is no node 1024"),
        ("bind", -1, "there is no node -1"),
        ("bind", 10**30, "there is no node 1000"),
        ("near", 0, "is one of default, preferred, .*; not 'near'"),
        (3, 0, "not 3"),
    ],
)
@pytest.mark.usefixtures("policies")
def test_policies_that_make_no_sense(mode: str, of: object, words: str, memory: mmap.mmap) -> None:
    before = nodes.get_policy()
    with pytest.raises(ArgumentError, match=words):
        nodes.set_policy(mode, of)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=words):
        nodes.bind(memory, mode, of)  # type: ignore[arg-type]
    assert nodes.get_policy() == before


def test_only_memory_that_can_be_written_takes_a_policy() -> None:
    with pytest.raises(BufferError):
        nodes.bind(bytes(PAGE), "local")


@pytest.mark.parametrize(
    ("error", "words"), [(1, "forbidden here"), (38, "built without NUMA")], ids=["EPERM", "ENOSYS"]
)
def test_what_the_kernel_refuses_is_unsupported(error: int, words: str, file: Path) -> None:
    numbers = {"x86_64": (237, 238, 239, 279), "aarch64": (235, 236, 237, 239)}
    if platform.machine() not in numbers:
        pytest.skip("the numbers of the system calls are not known here")
    script = f"""
import ctypes, struct
load, equal, answer = 0x20, 0x15, 0x06
words = [(load, 0, 0, 0)]
for number in {numbers[platform.machine()]}:
    words += [(equal, 0, 1, number), (answer, 0, 0, 0x50000 | {error})]
words += [(answer, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in words))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(words), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, a filter

import mmrt
memory = bytearray(1 << 20)
for use in (mmrt.numa.get_policy, lambda: mmrt.numa.set_policy("bind", {NODE}),
            lambda: mmrt.numa.bind(memory, "local"), lambda: mmrt.numa.page_nodes(memory)):
    try:
        use()
    except mmrt.UnsupportedError as refused:
        print(refused)
print(mmrt.numa.topology().allowed, mmrt.numa.bind_pool(mmrt.kernels.Pool(1)))
with mmrt.Mapping({str(file)!r}) as mapping:
    mmrt.numa.place(mapping, [(0, mapping.size, {NODE})])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    *refusals, rest = ended.stdout.splitlines()
    assert len(refusals) == 4 and all(words in line for line in refusals), ended.stdout
    assert rest.startswith(str(MACHINE.allowed))


# ---- where pages lie ----


@pytest.mark.usefixtures("policies")
def test_pages_are_on_a_node_once_they_are_touched(memory: mmap.mmap) -> None:
    memory[PAGE] = 1
    memory[3 * PAGE] = 1
    found = nodes.page_nodes(memory)
    assert found.dtype == np.int16
    assert [where >= 0 for where in found] == [False, True, False, True]
    assert set(found.tolist()) <= {-1, *MACHINE.allowed}
    assert nodes.page_nodes(memory, PAGE - 1, 2).tolist() == [-1, found[1]]
    assert nodes.page_nodes(memory, 5, 0).size == 0


@pytest.mark.usefixtures("policies")
def test_pages_of_mappings_and_tensors(tmp_path: Path) -> None:
    with mmrt.open(model_file(tmp_path)) as file:
        tensor = file["blk.0.ffn_up.weight"]
        tensor.evict()
        tensor.advise("populate_read")
        assert (nodes.page_nodes(tensor) >= 0).all()
        whole = nodes.page_nodes(file.mappings[0])
        assert whole.size == -(-file.mappings[0].size // PAGE)
        assert (whole[tensor.offset // PAGE :][: tensor.nbytes // PAGE] >= 0).all()


def test_ranges_of_pages_are_checked(memory: mmap.mmap) -> None:
    for offset, length in ((-1, 1), (0, -1), (0, 4 * PAGE + 1), (4 * PAGE + 1, None), (2**70, 1)):
        with pytest.raises(ArgumentError, match="outside 16384 bytes" if PAGE == 4096 else ""):
            nodes.page_nodes(memory, offset, length)


# ---- placing ----


def test_placing_reads_the_ranges_and_maps_them(file: Path) -> None:
    with Mapping(file) as mapping:
        done = nodes.place(mapping, [(2 * PAGE, 3 * PAGE, NODE), (7 * PAGE + 1, 1, NODE)])
        assert done.pages == 4 and done.there <= 4 and done.elsewhere == 0
        if len(MACHINE.nodes) == 1:
            assert done.there == 4
        pages = mapping.mapped().pages
        assert pages[2:5] == b"\1\1\1" and pages[7] == 1
        assert nodes.place(mapping, []) == (0, 0, 0)
        with memoryview(mapping) as view:
            assert view[7 * PAGE] == 0 and bytes(view[-4:]) == b"tail"


def test_what_cannot_be_placed(file: Path) -> None:
    mapping = Mapping(file)
    for wanted, words in (
        ((0, mapping.size + 1, NODE), "outside"),
        ((-1, 1, NODE), "outside"),
        ((2**70, 1, NODE), "outside"),
        ((0, 1, 1023), "there is no node 1023 with memory"),
        ((0, 1, -1), "there is no node -1"),
        ((0, 1, 4096), "there is no node 4096"),
    ):
        with pytest.raises(ArgumentError, match=words):
            nodes.place(mapping, [(0, 10, NODE), wanted])
    mapping.close()
    with pytest.raises(ArgumentError, match="closed"):
        nodes.place(mapping, [(0, 1, NODE)])


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "cut", bytes(10 * PAGE))
    with Mapping(path) as mapping:
        os.truncate(path, 5 * PAGE)
        with pytest.raises(FileError):
            nodes.place(mapping, [(0, 10 * PAGE, NODE)])


def test_placing_ends_when_a_signal_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 512 << 20)

    def late(*_: object) -> None:
        raise TimeoutError

    with Mapping(path) as mapping:
        former = signal.signal(signal.SIGALRM, late)
        try:
            with pytest.raises(TimeoutError):
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                nodes.place(mapping, [(0, mapping.size, NODE)])
                threading.Event().wait(10)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)


# ---- the policy of open, Model and the command line ----


def model_file(folder: Path) -> Path:
    """A model whose matrices are many pages."""
    shape = {"n_layers": 2, "n_embd": 256, "n_ff": 1024, "head_dim": 64, "n_heads": 4}
    path = tiny_models.llama(type="Q8_0", separate_output=True, **shape).write(folder / "m.gguf")
    with path.open("rb+") as written:
        os.fsync(written.fileno())  # or its pages could not be evicted
    return path


def test_threads_share_out_all_rows(tmp_path: Path) -> None:
    for threads in (1, 2, 3, 7):
        with mmrt.Model(model_file(tmp_path), threads=threads) as model:
            file, program = model.file, model.program
            for tensor in program.weights:
                first = program.shares(tensor)
                if first is None:
                    assert len(tensor.shape) == 1 or tensor.name == "token_embd.weight"
                    continue
                assert first[0] == 0 and first[-1] == tensor.shape[0] and sorted(first) == first
                assert len(first) == threads + 1
            # Queries, keys and values are shared out as one matrix, gate and up row by row.
            q, k, v = (program.shares(file[f"blk.1.attn_{name}.weight"]) or [] for name in "qkv")
            rows = [q[t + 1] - q[t] + k[t + 1] - k[t] + v[t + 1] - v[t] for t in range(threads)]
            assert threads > 3 or max(rows) < 2 * min(rows)
            assert threads < 2 or (k[1] == v[1] == 0 and q[-2] == q[-1]) or threads > 3
            gate, up = (program.shares(file[f"blk.1.ffn_{name}.weight"]) for name in ("gate", "up"))
            assert gate == up
    with pytest.raises(ArgumentError, match="closed"):
        program.shares(tensor)


def test_a_plan_puts_each_row_on_its_thread_s_node(tmp_path: Path) -> None:
    of_thread = [0, 0, 2]
    with mmrt.Model(model_file(tmp_path), threads=3) as model:
        weights, program = model.program.weights, model.program
        ((mapping, parts),) = policy.plan(weights, program, of_thread).items()
        where = np.full(mapping.size // PAGE + 1, -1)
        end = 0
        for offset, length, node in parts:
            assert offset >= end and offset % PAGE == 0 and length > 0
            end = offset + length
            assert where[offset // PAGE] == -1
            where[offset // PAGE : -(-end // PAGE)] = node
        assert end <= mapping.size and len(parts) < 3 * len(weights)
        misplaced = 0
        for tensor in weights:
            first = program.shares(tensor) or []
            row = tensor.nbytes // tensor.shape[0]
            for thread, node in enumerate(of_thread if first else ()):
                start = tensor.offset + first[thread] * row
                end = tensor.offset + first[thread + 1] * row
                pages = where[start // PAGE : -(-end // PAGE)]
                assert (pages[1:] == node).all()  # the first may be shared with the run before
                misplaced += (pages != node).sum()
            assert (
                where[tensor.offset // PAGE : (tensor.offset + tensor.nbytes) // PAGE] >= 0
            ).all()
        assert 0 < misplaced < where.size // 10


def test_a_plan_without_a_program_cuts_rows_evenly(tmp_path: Path) -> None:
    with mmrt.open(model_file(tmp_path)) as file:
        tensor = file["output.weight"]
        ((_, parts),) = policy.plan([tensor], None, [0, 1]).items()
        assert [node for *_, node in parts] == [0, 1]
        assert abs(parts[0][1] - tensor.nbytes // 2) < 2 * PAGE
        assert policy.plan(list(file.values()), None, [5, 5])[file.mappings[0]][0][2] == 5
        assert policy.plan([], None, [0, 1]) == {}


needs_one_node = pytest.mark.skipif(allowed_nodes() > 1, reason="there are several nodes here")


@needs_one_node
def test_on_one_node_all_is_read_and_a_warning_says_why(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    with (
        pytest.warns(UserWarning, match="policy numa: there is one memory node") as said,
        mmrt.open(path, policy="numa") as file,
    ):
        assert all(tensor.residency().fraction == 1 for tensor in file.values())
        assert said[0].filename == __file__
    with (
        pytest.warns(UserWarning, match="as with policy populate") as said,
        mmrt.Model(path, policy="numa", threads=2) as model,
    ):
        assert said[0].filename == __file__
        assert model.logits([1, 2, 3]).shape[0] == 3


@needs_one_node
def test_the_command_line_says_it_in_a_line(tmp_path: Path) -> None:
    path = model_file(tmp_path)
    plain = call("run", path, STORY, "-n", 4, "--temp", 0)
    ended = call("run", path, STORY, "-n", 4, "--temp", 0, "--policy", "numa")
    assert ended.status == plain.status == 0 and ended.out == plain.out
    assert "mmrt: policy numa: there is one memory node to use" in ended.err


class TwoNodes:
    """Takes the place of two nodes: notes what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], nodes.Placement]):
        self.pools: list[Pool] = []
        self.ranges: list[tuple[int, int, int]] = []
        self.answer = answer
        machine = nodes.Topology(MACHINE.nodes, (0, 1))
        monkeypatch.setattr(nodes, "topology", lambda: machine)
        monkeypatch.setattr(nodes, "bind_pool", self.bind_pool)
        monkeypatch.setattr(nodes, "place", self.place)

    def bind_pool(self, pool: Pool) -> list[int]:
        self.pools.append(pool)
        return [2 * thread // pool.threads for thread in range(pool.threads)]

    def place(self, _: Mapping, ranges: list[tuple[int, int, int]]) -> nodes.Placement:
        self.ranges += ranges
        return self.answer(sum(-(-length // PAGE) for _, length, _ in ranges))


def test_on_two_nodes_the_pool_is_bound_and_rows_are_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = TwoNodes(monkeypatch, lambda pages: nodes.Placement(pages, pages, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mmrt.Model(model_file(tmp_path), policy="numa", threads=4) as model:
            assert [pool.threads for pool in machine.pools] == [4]
            assert model.program.pool is machine.pools[0]
            by_node = [sum(n for _, n, node in machine.ranges if node == i) for i in (0, 1)]
            assert 0.7 < by_node[0] / by_node[1] < 1.4
            weights = sum(tensor.nbytes for tensor in model.program.weights)
            assert weights <= sum(by_node) <= weights + 2 * PAGE
        mmrt.open(model_file(tmp_path), policy="numa").close()
    assert machine.pools[1] is mmrt.kernels.default_pool()


def test_pages_that_cannot_be_placed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(tmp_path)
    TwoNodes(monkeypatch, lambda pages: nodes.Placement(pages, pages - 7, 7))
    with pytest.warns(UserWarning, match=r"policy numa: 7 of \d+ pages stay on other nodes"):
        mmrt.open(path, policy="numa").close()
    TwoNodes(monkeypatch, lambda pages: nodes.Placement(pages, 0, 0))
    with pytest.warns(UserWarning, match="does not say on which nodes they lie"):
        mmrt.open(path, policy="numa").close()
    monkeypatch.setattr("mmrt.files.policies.ranges.available_memory", lambda: 0)
    evict(path)
    with pytest.raises(OutOfMemoryError, match="policy numa: "):
        mmrt.open(path, policy="numa")


# ---- two nodes, in a guest ----

GUEST_TESTS = re.findall(r"^TEST\((\w+)\)", guest.SOURCE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the guest said."""
    try:
        return guest.run(tmp_path_factory.mktemp("guest"))
    except guest.Absent as reason:
        pytest.skip(f"no guest of two nodes: {reason}")


@pytest.mark.parametrize("name", GUEST_TESTS)
def test_on_two_nodes(name: str, console: str) -> None:
    assert re.search(rf"^ok \d+ - {name}\r?$", console, re.MULTILINE), console
