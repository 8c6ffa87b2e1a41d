"""Models of bench.make_model whose routers choose what bench.routing has set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmrt
from bench.make_model import SHAPES, make_model, routing_of
from bench.routing import PRESETS, best, draw
from mmrt.core.quant import TYPES, dequantize
from mmrt.errors import UnsupportedError

SMALL = replace(
    SHAPES["30B-A3B"], n_layers=2, n_embd=512, n_ff_expert=256, n_vocab=700, n_heads=4, n_kv_heads=2
)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K", "MXFP4", "F16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_float32_chooses_what_was_drawn(type: str, preset: str) -> None:
    routing = routing_of(SMALL, preset, type)
    assert routing.width == 256 and routing.steps == 128
    values = dequantize(type, routing.codes.tobytes(), routing.codes.size // TYPES[type].bytes
                        * TYPES[type].elements)  # fmt: skip
    codes = values.reshape(routing.steps, routing.width)
    logits = np.einsum("td,led->tle", codes, routing.routers)
    assert np.array_equal(best(logits, SMALL.n_used), routing.choices)
    ordered = np.sort(logits, axis=-1)
    assert (ordered[..., -8] - ordered[..., -9]).min() > 0.99  # no rounding matters


def test_tensors_leave_the_code_alone(tmp_path: Path) -> None:
    routing = routing_of(SMALL, "skewed", "Q4_0")
    path = tmp_path / "m.gguf"
    make_model(str(path), SMALL, "Q4_0", routing=routing)
    with mmrt.open(path) as file:
        embedding = file["token_embd.weight"].dequantize()
        codes = embedding[:, : routing.width]
        assert np.array_equal(codes[: routing.steps], codes[routing.steps : 2 * routing.steps])
        assert len(np.unique(codes, axis=0)) == routing.steps and codes.std() > 0.5
        assert not np.array_equal(embedding[0, 256:], embedding[routing.steps, 256:])
        for role in ("attn_output", "ffn_down_exps"):
            rows = file[f"blk.1.{role}.weight"].dequantize()
            assert not rows[..., : routing.width, :].any()
            assert rows[..., routing.width :, :].any(-1).all()
        for name in ("attn_norm", "ffn_norm"):
            norm = file[f"blk.1.{name}.weight"].dequantize()
            assert (norm[: routing.width] == 1).all() and (norm[routing.width :] != 1).any()
        router = file["blk.1.ffn_gate_inp.weight"].dequantize()
        assert router[:, : routing.width].any() and not router[:, routing.width :].any()


def test_presets_have_the_statistics_that_they_are_named_for() -> None:
    """How many of a token's experts are also those of the token before, and what share of the uses
    the most used 32 of 128 have."""

    def of(preset: str, experts: int, used: int) -> tuple[float, float]:
        logits = draw(PRESETS[preset], np.random.default_rng(0), 256, 8, experts)
        chosen = np.zeros(logits.shape, bool)
        np.put_along_axis(chosen, best(logits, used), True, -1)
        counts = np.sort(chosen.sum(0), axis=-1)[:, ::-1]
        top = counts[1:, : experts // 4].sum() / counts[1:].sum()
        return float((chosen[1:] & chosen[:-1]).sum() / chosen[1:].sum()), float(top)

    skewed, middle, flat = of("skewed", 128, 8), of("middle", 512, 10), of("flat", 256, 8)
    assert skewed == pytest.approx((0.37, 0.84), abs=0.05)
    assert skewed > middle > flat and skewed[1] > middle[1] > flat[1]


@pytest.mark.parametrize("architecture", ["30B-A3B", "gpt-oss-120b"])
def test_shapes_run(architecture: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"n_layers": 2, "n_embd": 512, "n_ff_expert": 64, "n_vocab": 700}
    shape = replace(SHAPES[architecture], **changes)
    path = tmp_path / "m.gguf"
    make_model(str(path), shape, "MXFP4", routing=routing_of(shape, "flat", "MXFP4"))
    with mmrt.Model(path) as model:
        assert 0.1 < model.logits(range(10)).std() < 10


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="without experts"):
        routing_of(SHAPES["8B"], "skewed", "Q4_0")
    with pytest.raises(UnsupportedError, match="stream of 256 has no room for a block of Q4_K"):
        routing_of(replace(SMALL, n_embd=256), "skewed", "Q4_K")
