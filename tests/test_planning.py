"""Plans of cuts: the quickest of all, against all that there are; and what is said of machines."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from command import call

import mmrt
from mmrt.cluster import planning
from mmrt.cluster.hosts import Host, places, read_hosts
from mmrt.cluster.planning import Layer, Shape
from mmrt.errors import ArgumentError

MIB = 1 << 20
GIB = 1 << 30
BESIDE = planning._BESIDE

# Of the size of an 8B model in Q4_0.
LARGE = Shape(
    layers=[Layer(130 * MIB, 130 * MIB, 4096)] * 32,
    embedding=300 * MIB,
    output=430 * MIB,
    is_tied=False,
    row=16384,
    logits=512 << 10,
    context=4096,
)


def host(
    name: str, memory: float, speed: float = 40.0, disk: float = 0.0, hop: float = 3e-4
) -> Host:
    """memory, speed and disk in GiB, and in GiB a second."""
    return Host(f"{name}:1", int(memory * GIB), speed * GIB, disk * GIB, hop)


def by_hand(shape: Shape, hosts: list[Host]) -> float:
    """The least seconds, by trying every order of every choice of machines with every cut."""
    n, least = len(shape.layers), float("inf")
    for k in range(1, len(hosts) + 1):
        for order in itertools.permutations(hosts, k):
            for cuts in itertools.combinations(range(1, n), k - 1):
                parts = itertools.pairwise([0, *cuts, n])
                stages = [
                    planning._place(shape, each, range(*part))
                    for each, part in zip(order, parts, strict=True)
                ]
                lines = sum(planning._line(a, b, shape.row) for a, b in itertools.pairwise(order))
                ends = order[0].hop + order[-1].hop + shape.logits / order[-1].rate
                least = min(least, sum(stage.seconds for stage in stages) + lines + ends)
    return least


@pytest.mark.parametrize("seed", range(12))
def test_the_quickest_of_all_cuts(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [
        Layer(int(n), int(n) // int(random.integers(1, 4)), 4096)
        for n in random.integers(20, 200, 7) * MIB
    ]
    shape = replace(LARGE, layers=layers, is_tied=bool(seed % 2), embedding=LARGE.output)
    hosts = [
        host(
            f"h{i}", random.uniform(0.3, 1.2), random.uniform(5, 40), disk, random.uniform(0, 0.01)
        )
        for i, disk in enumerate([0.0, 1.5, 0.3, 0.0][: int(random.integers(1, 5))])
    ]
    wanted = by_hand(shape, hosts)
    if wanted == float("inf"):
        with pytest.raises(ArgumentError, match="no room for the model"):
            planning.plan(shape, hosts)
        return
    plan = planning.plan(shape, hosts)
    assert plan.seconds == pytest.approx(wanted)
    assert [each.layers.start for each in plan.placed] == [
        0,
        *(each.layers.stop for each in plan.placed[:-1]),
    ]
    assert plan.placed[-1].layers.stop == len(layers)
    assert {each.host for each in plan.placed} | {each.host for each in plan.left_out} == set(hosts)


def test_one_machine_that_holds_all_is_quickest_alone() -> None:
    plan = planning.plan(LARGE, [host("a", 3), host("b", 16), host("c", 3, hop=5e-3)])
    assert [each.host.place for each in plan.placed] == ["b:1"]
    assert plan.placed[0].streamed == 0
    assert {each.host.place for each in plan.left_out} == {"a:1", "c:1"}
    assert all(each.seconds > plan.seconds for each in plan.left_out)


def test_three_small_machines_hold_what_one_streams() -> None:
    alone = planning.plan(LARGE, [host("a", 2.5, disk=2)])
    assert alone.placed[0].streamed > GIB
    three = planning.plan(LARGE, [host(name, 2.5, disk=2) for name in "abc"])
    assert [each.streamed for each in three.placed] == [0, 0, 0]
    assert three.seconds < alone.seconds / 5
    assert three.hops == pytest.approx(4 * 3e-4 + (2 * LARGE.row + LARGE.logits) / 125e6)


def test_a_machine_on_a_slow_line_is_left_out_unless_it_is_needed() -> None:
    near, far = host("near", 6), host("far", 6, hop=20e-3)
    plan = planning.plan(LARGE, [near, far])
    assert [each.host for each in plan.placed] == [near]
    assert plan.left_out[0].seconds > plan.seconds + 0.039
    plan = planning.plan(LARGE, [replace(near, memory=3 * GIB), far])
    assert far in [each.host for each in plan.placed]


def test_layers_go_to_the_fast_until_its_memory_is_full() -> None:
    fast, slow = host("fast", 3, speed=40), host("slow", 8, speed=10)
    plan = planning.plan(LARGE, [slow, fast])
    mine = next(each for each in plan.placed if each.host == fast)
    room = fast.memory - BESIDE - (len(mine.layers) + 1) * 4096 * 4096
    assert mine.held <= room < mine.held + LARGE.layers[0].held + 16 * MIB


# ---- models ----


def test_the_shape_of_a_model(tmp_path: Path) -> None:
    model = tiny_models.qwen3moe(n_layers=3, experts={"count": 8, "used": 2})
    path = model.write(tmp_path / "m.gguf")
    shape = Shape.of(path, 100)
    with mmrt.open(path) as file:
        for i, layer in enumerate(shape.layers):
            own = [t for t in file.values() if t.name.startswith(f"blk.{i}.")]
            experts = sum(t.nbytes for t in own if "_exps" in t.name)
            assert layer.held == sum(t.nbytes for t in own)
            assert layer.read == layer.held - experts * 6 // 8
        table, norm = file["token_embd.weight"].nbytes, file["output_norm.weight"].nbytes
    assert (shape.embedding, shape.output, shape.is_tied) == (table, table + norm, True)
    assert (shape.row, shape.logits, shape.context) == (64 * 4, 300 * 4, 100)
    with mmrt.Model(path) as whole, whole.sequence() as text:
        text.extend([0] * 32)
        assert 32 * sum(layer.kv for layer in shape.layers) == text.nbytes


def test_this_machine(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4, type="Q8_0").write(tmp_path / "m.gguf")
    found = planning.measure(path, threads=1)
    assert found.memory > 0 and found.speed > 0
    (tmp_path / "hosts").write_text(str(found).replace("HERE:PORT", "here:1"))
    (read,) = read_hosts(tmp_path / "hosts")
    assert read.speed == pytest.approx(found.speed, rel=0.01)
    assert read.memory == pytest.approx(found.memory, rel=0.01)


# ---- hosts ----


def test_lines_of_hosts(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "# all\n10.0.0.1:7600 memory=6.5GiB speed=35GiB/s disk=2GiB/s hop=0.3ms rate=100mbit # x\n"
        "\nb:1\n[::1]:2 hop=20us\n"
    )
    first, second, third = read_hosts(file)
    assert first.place == "10.0.0.1:7600" and first.memory == int(6.5 * GIB)
    assert (first.speed, first.disk) == (35 * GIB, 2 * GIB)
    assert first.hop == pytest.approx(3e-4) and first.rate == pytest.approx(12.5e6)
    assert second == Host("b:1") and third.hop == pytest.approx(2e-5)
    assert places(file) == ["10.0.0.1:7600", "b:1", "[::1]:2"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nowhere", "address: expected HOST:PORT"),
        ("a:1 memory=lots", "'lots' is not a size"),
        ("a:1 memory=1GiB memory=2GiB", "memory is there twice"),
        ("a:1 speed=2GiB", "speed: expected bytes a second"),
        ("a:1 hop=3", "hop: expected a time"),
        ("a:1 rate=0gbit", "rate: expected bits a second"),
        ("a:1 colour=red", "there is no 'colour'"),
        ("a:1 red", "there is no 'red'"),
    ],
)
def test_lines_that_are_none(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"b:1\n{line}\n")
    with pytest.raises(ArgumentError, match=re.escape(f"{file}:2: ") + ".*" + words):
        read_hosts(file)


def test_hosts_that_make_no_plan() -> None:
    with pytest.raises(ArgumentError, match=r"a:1: say its memory and its speed"):
        planning.plan(LARGE, [Host("a:1", memory=GIB)])
    for hosts in ([], [host("a", 8)] * 11):
        with pytest.raises(ArgumentError, match=f"there are {len(hosts)}; a plan takes 1 to 10"):
            planning.plan(LARGE, hosts)


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "near:1 memory=1GiB speed=30GiB/s\nfar:1 memory=1GiB speed=30GiB/s hop=40ms\n"
        "tiny:1 memory=1MiB speed=30GiB/s\n"
    )
    done = call("plan", path, hosts)
    assert (done.status, done.err) == (0, "")
    assert re.search(r"near:1 +0:4 +", done.out) and "tokens a second" in done.out
    assert re.search(r"far:1 is left out: with it 8\d\.\d ms", done.out)
    assert "tiny:1 is left out: has no room" in done.out
    here = call("plan", path, "--here")
    assert re.fullmatch(
        r"HERE:PORT memory=\S+ speed=\S+/s (disk=\S+ )?hop=\S+ rate=\S+\n", here.out
    )
    call("plan", path).assert_refused(2, "expected HOSTS, or --here")
    call("plan", path, hosts, "--here").assert_refused(2, "expected HOSTS, or --here")
    hosts.write_text("")
    call("plan", path, hosts).assert_refused(1, "hosts: there are 0")


@pytest.mark.parametrize("rich", [False, True])
def test_only_layers_that_attend_keep_anything_of_a_token(rich: bool, tmp_path: Path) -> None:
    path = tiny_architectures.tiny("lfm2", rich, n_embd=64).write(tmp_path / "m.gguf")
    kept = [layer.kv for layer in Shape.of(path, 100).layers]
    with mmrt.Model(path) as whole:
        assert 32 * sum(kept) == whole.store.page_bytes
    assert min(kept) == 0 < max(kept)
