"""The simulation of many machines: what it has to say where that is known."""

from pathlib import Path

import pytest
import tiny_models

from bench.cluster import compute, main, simulate
from mmrt.cluster.planning import Layer, Shape


def test_one_text_takes_the_sum_of_stages_and_hops() -> None:
    speed = simulate([lambda n: 0.1 * n, lambda n: 0.3, lambda n: 0.2], 0.01, 1)
    assert speed == pytest.approx(1 / (0.1 + 0.3 + 0.2 + 4 * 0.01))


def test_many_texts_go_as_fast_as_the_slowest_stage() -> None:
    speed = simulate([lambda n: 0.1, lambda n: 0.3, lambda n: 0.2], 0.001, 6)
    assert speed == pytest.approx(2 / 0.3, rel=0.02)  # two texts a step


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    words = [str(path), "--machines", "2", "4", "64", "--texts", "1", "8", "-t", "1"]
    main([*words, "--context", "64", "--pictures", str(tmp_path)])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("measured here") and out[1].startswith("computed")
    assert [line.split()[:2] for line in out[3:]] == [
        ["2", "1"],
        ["2", "8"],
        ["4", "1"],
        ["4", "8"],
    ]
    assert "8 texts" in (tmp_path / "cluster-speed.svg").read_text()
    assert "GiB a machine" in (tmp_path / "cluster-memory.svg").read_text()


def test_a_model_of_more_layers() -> None:
    """Twice the layers take twice the time and the room."""
    shape = Shape([Layer(1000, 1000, 10)] * 4, 0, 0, False, row=0, logits=0, context=5)
    one, two = (compute(shape, n, 2, 1, ([0.5] * 9, 1), (0.0, 1.0)) for n in (len(shape.layers), 8))
    assert one.speed == pytest.approx(1 / (4 * 0.5)) and one.held == (4000 + 4 * 50) // 2
    assert two.speed == pytest.approx(one.speed / 2) and two.held == 2 * one.held
