"""Predictors that are made for measuring name as many neurons as they are told to."""

from pathlib import Path

import pytest
from test_bundle import IDS, SHAPE, bundled, plain
from test_neurons import columns, limit

import mmrt
from bench import limited, limits
from bench.limits import Run
from bench.make_predictor import make

N_NEURONS = SHAPE["n_ff"] * SHAPE["n_layers"]


def test_so_many_are_named(tmp_path: Path) -> None:
    path, bundle = bundled(plain("F16", n_vocab=2000, n_embd=1024, head_dim=64), tmp_path)
    predictor = limited.predictor_of(str(path))
    size = make(str(path), predictor, part=0.1, rank=16)
    assert size < Path(predictor).stat().st_size < 1.5 * size
    with (
        mmrt.Model(path, bundle=bundle, predictor=predictor) as model,
        model.sequence() as sequence,
    ):
        program = limit(model, 0)
        for token in IDS[:10]:
            sequence.extend([token])
        # rows of tiny models are not normed to quite 1
        assert columns(program).wanted / 10 == pytest.approx(0.1 * N_NEURONS, rel=0.5)
        assert columns(program).found < columns(program).wanted


def test_what_is_said_of_them() -> None:
    weights = {"weights": 100, "kept": 50, "ring": 0, "stall": 0.1, "read": 2 << 20}
    ours = Run(limited.OURS, 1 << 30, 2e9, found=weights | {"seconds": [1.0, 1.0], "answers": []})
    neurons = {"neurons": {"wanted": 100, "found": 25}}
    predicted = Run(
        limited.PREDICTED, 1 << 30, 2e9,
        found=weights | {"seconds": [0.5, 0.5], "answers": []} | neurons,
    )  # fmt: skip
    rows = dict(limits.headline([ours, predicted], ours, 1 << 30))
    assert rows["mmrt with a predictor (lossy), tokens/s"] == "2.000"
    assert rows["mmrt with a predictor / mmrt"] == "2.00"
    assert rows["neurons named a token"] == "50"
    assert rows["of these found in memory"] == "25.0%"
    assert rows["read a token, with a predictor"] == "2 MiB"
