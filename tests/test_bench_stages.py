"""The benchmark of several small machines: a small run of it."""

import zlib
from pathlib import Path

import pytest
import tiny_models
from command import HOME
from machine import memory_cgroup
from networks import in_network

import mmrt
from bench.engine import tokens
from bench.limited import WARM_UP
from bench.networks import Network
from bench.stages import Machines, Measured, measure, round_trip
from mmrt.cluster.planning import Shape

ROOT = Path(__file__).resolve().parent.parent


def test_stages_within_limits_compute_what_one_machine_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HOME)  # for stages: mmrt as it is installed, and bench/ behind it
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = str(tiny_models.llama(n_layers=4, n_vocab=2000).write(tmp_path / "m.gguf"))
    with mmrt.Model(path) as model, model.sequence() as sequence:
        ids = [*tokens(WARM_UP), *tokens(3)]
        wanted = [zlib.crc32(sequence.extend([token]).tobytes()) for token in ids]

    def work(network: Network) -> None:
        with Machines(path, [range(3), range(3, 4)], network, 256 << 20, 64) as machines:
            found = measure(machines, 3)
            assert found.sums == wanted
            assert (len(found.seconds), len(found.stages)) == (3, 2)
            assert found.read == 0 and sum(found.stages) < sum(found.seconds)
            assert all(0 < peak <= 256 << 20 for peak in found.peaks)
            assert round_trip(machines.addresses) > 0

    with memory_cgroup():
        in_network(work)


def test_a_hop_is_what_neither_stages_nor_rates_take() -> None:
    shape = Shape([], 0, 0, False, row=100, logits=1000, context=1)
    found = Measured([0.5, 0.5], [0.1, 0.2], 0, [], [])
    assert found.hop(shape, rate=11000) == pytest.approx((0.5 - 0.3 - 0.1) / 3)
