"""Experts on demand: the same logits within any budget, and the reads that the rule of
docs/streaming.md asks for, to the last."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import expert_cache
import numpy as np
import pytest
import tiny_models
from children import in_child
from command import HOME
from machine import memory_cgroup, needs_reader
from numpy.typing import NDArray

import mmrt
from mmrt import counters
from mmrt.core.program import Program
from mmrt.core.streaming import READERS, Demand
from mmrt.errors import FileError
from mmrt.memory import budget

MIB = 1 << 20
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 200, 60)]
COUNT, USED = 16, 3
EXPERTS = {"type": "Q8_0", "width": 96, "count": COUNT, "used": USED}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_models.qwen3moe(n_embd=128, n_layers=3, type="Q8_0", experts=EXPERTS)
    return tiny.write(tmp_path_factory.mktemp("demand") / "m.gguf")


def limit(model: mmrt.Model, part: float, reader: str = "mapped") -> Program:
    """A budget for weights, `part` of the way from the least to the one that holds them all."""
    ends = model.program.plan(0)
    model.program.set_reader(reader)
    model.program.set_budget(int(ends.least + part * (ends.most - ends.least)))
    return model.program


def demand(program: Program) -> Demand:
    assert program.streaming is not None
    return program.streaming.experts


def read(model: mmrt.Model) -> NDArray[np.float32]:
    """Logits after a prompt and after each of the tokens that follow it."""
    with model.sequence() as sequence:
        logits = [sequence.extend(IDS[:24])]
        return np.stack(logits + [sequence.extend([i]) for i in IDS[24:]])


@pytest.mark.parametrize("reader", READERS)
def test_every_budget_gives_the_same(path: Path, reader: str) -> None:
    needs_reader(reader, path)
    with mmrt.Model(path) as model:
        expected = read(model)
        for part in (0, 0.1, 0.3, 0.6, 0.9, 1, 0.2):
            program = limit(model, part, reader)
            before = demand(program)
            assert np.array_equal(read(model), expected)
            done = demand(program) - before
            assert (done.wanted > done.found) == (part < 1)
            assert done.read_units <= 3 * (done.wanted - done.found)


@pytest.mark.parametrize("kind", ["gate and up in one stack", "dense, then a shared expert too"])
def test_every_budget_gives_the_same_of_all_kinds(kind: str, tmp_path: Path) -> None:
    more = {"biases": True, "dense": 1, "expert_shared_count": 1} if "shared" in kind else {}
    tiny = tiny_models.qwen3moe(n_embd=128, n_layers=3, type="Q8_0", experts=EXPERTS | more)
    if more:
        tiny_models.with_shared_expert(tiny, 96)
    for name in ("gate", "up", "down"):
        scales = tiny_models.floats(np.random.default_rng(4), COUNT, mean=1.0)
        tiny.tensors[f"blk.1.ffn_{name}_exps.scale"] = scales
    if not more:
        del tiny.tensors["blk.1.ffn_up_exps.scale"]
        scales = tiny.tensors.pop("blk.1.ffn_gate_exps.scale")
        tiny.tensors["blk.1.ffn_gate_up_exps.scale"] = scales
        tiny_models.fuse_experts(tiny)
    with mmrt.Model(tiny.write(tmp_path / "m.gguf")) as model:
        expected = read(model)
        for part in (0, 0.3, 0.9, 0.1):
            program = limit(model, part)
            assert np.array_equal(read(model), expected)
            assert demand(program).wanted > demand(program).found


def test_experts_of_two_sizes(tmp_path: Path) -> None:
    """Layers whose experts differ in size have slots of their own."""
    tiny = tiny_models.qwen3moe(n_embd=256, n_layers=4, type="Q8_0", experts={"width": 256})
    for i in range(4):
        other = tiny_models.qwen3moe(
            n_embd=256, n_layers=4, type="Q8_0", experts={"width": 256, "type": "Q4_0"}
        )
        for role in ("gate", "up") + (("down",) if i % 2 else ()):
            name = f"blk.{i}.ffn_{role}_exps.weight"
            tiny.tensors[name] = other.tensors[name]
    with mmrt.Model(tiny.write(tmp_path / "m.gguf")) as model:
        expected = read(model)
        for part in (0.1, 0.5, 0.8):
            program = limit(model, part)
            assert np.array_equal(read(model), expected)
            sizes = {each.slot_bytes: each.slots for _, each in program.demand}
            assert len(sizes) == 2 and sum(sizes.values()) == demand(program).slots
            assert max(sizes.values()) - min(sizes.values()) <= 1  # as many experts have either


@pytest.mark.parametrize("exact", [False, True])
def test_texts_read_together(path: Path, exact: bool) -> None:
    def together(model: mmrt.Model) -> list[str]:
        prompts = [IDS[:9], IDS[9:30], IDS[30:33]]
        return [str(text) for text in model.generate_all(prompts, max_tokens=12, temperature=0)]

    with mmrt.Model(path, exact=exact) as model:
        expected = together(model)
        for part in (0, 0.4):
            limit(model, part)
            assert together(model) == expected


def test_a_cut_file_names_the_expert(tmp_path: Path) -> None:
    """A step ends with what it could not read; when the file is whole again, steps go on."""
    tiny = tiny_models.qwen3moe(n_embd=128, n_layers=3, type="Q8_0", experts=EXPERTS)
    name = "blk.1.ffn_down_exps.weight"
    tiny.tensors[name] = tiny.tensors.pop(name)  # the last in the file
    path = tiny.write(tmp_path / "cut.gguf")
    needs_reader("threads", path)
    whole = path.read_bytes()
    with mmrt.Model(path) as model, model.sequence() as sequence:
        expected = sequence.extend(IDS)
        limit(model, 0, "threads")
        sequence.truncate(0)
        os.truncate(path, len(whole) - 128 * 102 * 8)  # half of them
        with pytest.raises(FileError, match=rf"tensor {name}, expert \d+: .*cut\.gguf"):
            sequence.extend(IDS)
        with open(path, "r+b") as file:  # which cuts nothing
            file.write(whole)
        assert np.array_equal(sequence.extend(IDS), expected)


def test_a_forked_child_goes_on(path: Path) -> None:
    with mmrt.Model(path) as model:
        expected = read(model)
        limit(model, 0.4)
        assert np.array_equal(read(model), expected)

        def work() -> None:
            assert np.array_equal(read(model), expected)

        in_child(work)
        assert np.array_equal(read(model), expected)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """106 MB of experts, and 256 KiB of keys and values for 32 tokens."""
    shape = {"n_embd": 1024, "n_layers": 2, "head_dim": 64, "n_heads": 16, "n_kv_heads": 16}
    experts = {"type": "Q8_0", "width": 512, "count": 32, "used": 4}
    tiny = tiny_models.qwen3moe(type="Q8_0", context=4096, experts=experts, **shape)
    return tiny.write(tmp_path_factory.mktemp("large") / "m.gguf")


def test_slots_are_given_back(large: Path) -> None:
    """What a smaller budget takes away is the system's again, and what is left is still found."""
    needs_reader("threads", large)
    with mmrt.Model(large) as model, model.sequence() as sequence:
        program = limit(model, 0.9, "threads")
        for i in IDS:
            logits = sequence.extend([i])
        before, full = counters.resident().anon, demand(program)
        assert full.slot_bytes > 1 << 20
        limit(model, 0.3, "threads")
        fewer = full.slots - demand(program).slots
        assert before - counters.resident().anon > (fewer - 8) * full.slot_bytes
        sequence.truncate(len(IDS) - 1)
        start = demand(program)
        assert np.array_equal(sequence.extend(IDS[-1:]), logits)
        again = demand(program) - start
        assert again.found and again.read <= 1.02 * 3 * (again.wanted - again.found) * 557056


def test_texts_take_slots_back(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As keys and values grow there are fewer slots, and more again when the text is closed."""
    used = counters.resident()
    monkeypatch.setattr(counters, "resident", lambda: used)
    with mmrt.Model(large, exact=True) as model, model.sequence() as sequence:
        expected = [sequence.extend(IDS * 6) for _ in range(2)]
    small = mmrt.Budget(sum(used) + 90 * MIB)  # which divides steps
    with mmrt.Model(large, exact=True, memory=small) as model:
        slots = [demand(model.program).slots]
        with model.sequence() as sequence:
            for logits in expected:
                assert np.array_equal(sequence.extend(IDS * 6), logits)
                slots.append(demand(model.program).slots)
        assert slots[0] > slots[-1] > 0 and slots[1:] == sorted(slots[1:], reverse=True)
        monkeypatch.setattr(budget, "_LOOK_SECONDS", 0.0)
        with model.sequence() as sequence:
            sequence.extend(IDS)
            assert demand(model.program).slots > slots[-1]


LEAST = """
import re, sys
import mmrt
path, size, reader = sys.argv[1:]
try:
    with mmrt.Model(path, memory=size, reader=reader or None, threads=2) as model:
        ids = model.tokenize("a cab abc " * 4)[:48]
        assert len(list(model.stream(ids, max_tokens=64, temperature=1.0, seed=1))) > 1
        assert model.memory.cache and model.streaming.experts.wanted
except mmrt.OutOfMemoryError as error:
    print(re.search(r"needs at least (\\d+) MiB", str(error))[1])
"""


@pytest.mark.parametrize("reader", READERS)
def test_the_least_is_enough(large: Path, reader: str) -> None:
    """As a limit of a cgroup it is not even reached."""
    needs_reader(reader, large)

    def run(size: int, enter: Callable[[], None] | None = None) -> str:
        command = [sys.executable, "-c", LEAST, str(large), f"{size}MiB", reader]
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, preexec_fn=enter)
        assert done.returncode == 0, done.stderr
        return done.stdout

    least = int(run(1))
    with memory_cgroup() as limit:
        limit.write_text(str(least * MIB))

        def enter() -> None:
            limit.with_name("cgroup.procs").write_text(str(os.getpid()))

        assert run(least, enter) == ""


# ---- the rule ----


class Routed:
    """A model whose layers see tokens alone, so that what its routers choose can be told."""

    def __init__(self, folder: Path, layers: int = 4) -> None:
        self.layers = layers
        tiny = tiny_models.qwen3moe(n_embd=128, n_layers=layers, experts=EXPERTS)
        blocks = tiny.tensors

        def floats(name: str) -> NDArray[np.float64]:
            return blocks[name].data.view(np.float32).astype(np.float64)

        normed = floats("token_embd.weight")
        normed /= np.sqrt((normed**2).mean(1, keepdims=True) + 1e-5)
        self._chosen = []
        for i in range(layers):
            for name in ("attn_output", "ffn_down_exps"):
                blocks[f"blk.{i}.{name}.weight"].data[:] = 0
            logits = (normed * floats(f"blk.{i}.ffn_norm.weight")) @ floats(
                f"blk.{i}.ffn_gate_inp.weight"
            ).T
            self._chosen.append(np.argsort(-logits, axis=1)[:, :USED])
        self.path = tiny.write(folder / "routed.gguf")

    def chosen(self, layer: int, tokens: Sequence[int]) -> list[list[int]]:
        return [self._chosen[layer][token].tolist() for token in tokens]


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    return Routed(tmp_path_factory.mktemp("routed"))


def steps() -> Iterator[list[int]]:
    """Prompts, single tokens of which some come often, and steps of a few."""
    random = np.random.default_rng(3)
    often = random.integers(0, 200, 12)
    for _ in range(4):
        yield random.integers(0, 200, 40).tolist()
        for _ in range(60):
            yield [int(random.choice(often if random.random() < 0.7 else 200))]
        yield random.integers(0, 200, 5).tolist()


@pytest.mark.parametrize("lru", [False, True])
@pytest.mark.parametrize("part", [0.05, 0.15, 0.4, 0.8])
def test_reads_are_those_of_the_rule(routed: Routed, part: float, lru: bool) -> None:
    with mmrt.Model(routed.path) as model, model.sequence() as sequence:
        program = limit(model, part)
        if lru:
            program.evict_least_recent()
        simulated = expert_cache.Cache(demand(program).slots, lru=lru)
        for tokens in steps():
            sequence.extend(tokens)
            for layer in range(routed.layers):
                # Of the last layer, a step computes what its logits need.
                needed = tokens[-1:] if layer == routed.layers - 1 else tokens
                simulated.step(layer, COUNT, routed.chosen(layer, needed))
        done = demand(program)
        assert (done.wanted, done.found) == (simulated.wanted, simulated.found)
        assert done.read_units == 3 * (done.wanted - done.found)
        by_layer = [each for _, each in program.demand]
        assert sum(each.found for each in by_layer) == done.found
        assert [each.wanted for each in by_layer] == simulated.wanted_by_layer
