"""Random models of bench.make_model: whole, and of use to mmrt and to the `gguf` package."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from gguf import GGUFReader

import mmrt
from bench.blocks import FLOATS, random_blocks
from bench.make_model import SHAPES, Shape, make_model
from mmrt.core.quant import TYPES, dequantize

SMALL = Shape(2, n_embd=256, n_ff=512, n_heads=4, n_kv_heads=2, n_vocab=3000)
NAMES = [kind.name for kind in TYPES.values() if kind.has_unpack]
TEXT = "the abc of it, naïve"


@pytest.mark.slow
@pytest.mark.parametrize("type", NAMES)
def test_every_type_runs(type: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    n_bytes = make_model(str(path), SMALL, type)
    with mmrt.Model(path) as model:
        assert model.file.nbytes == n_bytes
        ids = model.tokenize(TEXT, add_bos=False)
        assert model.detokenize(ids) == TEXT and len(ids) < len(TEXT)
        assert model.tokenize(TEXT) == [SMALL.n_vocab - 2, *ids]
        logits = model.logits(ids)
    assert logits.shape == (len(ids), SMALL.n_vocab) and 0.1 < logits.std() < 10


@pytest.mark.parametrize("type", NAMES)
@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_weights_have_the_spread_asked_for(type: str, spread: float) -> None:
    blocks = random_blocks(np.random.default_rng(1), type, 1000, spread)
    weights = dequantize(
        type, blocks.tobytes(), blocks.size // TYPES[type].bytes * TYPES[type].elements
    )
    slack = 0.25 if type in ("MXFP4", "NVFP4") else 0.15 if type in FLOATS else 0.1
    assert abs(weights.std() / spread - 1) < slack
    assert abs(weights.mean()) < 0.03 * spread


def test_types_of_embedding_and_output(tmp_path: Path) -> None:
    path = str(tmp_path / "model.gguf")
    make_model(path, SMALL, "Q4_0", embedding="Q8_0", output="Q6_K", seed=1)
    reader = GGUFReader(path)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["output.weight"] == "Q6_K"
    assert types["blk.1.ffn_down.weight"] == "Q4_0" and types["output_norm.weight"] == "F32"


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        make_model(str(file), SMALL, "Q4_K", seed=seed)
    a, b, c = (file.read_bytes() for file in files)
    assert a == b and a != c


@pytest.mark.parametrize("name", ["6.7B-OPT", "7B-ReLU"])
@pytest.mark.parametrize("type", ["F16", "Q4_0"])
def test_so_many_units_are_zero(name: str, type: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[name], n_layers=2, n_embd=256, n_ff=2048, n_heads=4, n_kv_heads=4)
    shape = replace(shape, n_vocab=3000, context=64)
    path = tmp_path / "model.gguf"
    make_model(str(path), shape, type)
    with mmrt.Model(path) as model:
        assert np.isfinite(model.logits(model.tokenize(TEXT))).all()
        role = "ffn_up" if shape.architecture == "opt" else "ffn_gate"
        layer = {
            part: model.file[f"blk.1.{part}"].dequantize()
            for part in (f"{role}.weight", f"{role}.bias", "ffn_norm.weight")
        }
    x = np.random.default_rng(2).standard_normal((64, shape.n_embd)) * layer["ffn_norm.weight"]
    sums = x @ layer[f"{role}.weight"].T + layer[f"{role}.bias"]
    assert abs(np.mean(sums <= 0) - shape.zeros) < 0.02


@pytest.mark.parametrize("type", ["F16", "Q4_0"])
def test_layers_that_share_keys_and_have_embeddings(type: str, tmp_path: Path) -> None:
    shape = replace(SHAPES["E4B"], n_layers=12, n_sharing=6, n_embd=128, n_ff=256, n_vocab=3000)
    shape = replace(shape, head_dim=64, head_dim_in_window=32, layer_embedding=32, window=16)
    path = tmp_path / "model.gguf"
    n_bytes = make_model(str(path), shape, type, embedding="Q8_0")
    with mmrt.Model(path) as model:
        assert model.file.nbytes == n_bytes
        logits = model.logits(model.tokenize(TEXT))
        assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
        assert model.file["per_layer_token_embd.weight"].shape == (3000, 12 * 32)


HYBRIDS = [
    ("Qwen3.5-4B", "ddda"),
    ("Qwen3-Next-80B-A3B", "ddda"),
    ("Qwen3.5-35B-A3B", "ddda"),
    ("Granite-4-H-Tiny", "sssssa"),
    ("Granite-4-H-Micro", "sssssa"),
    ("Nemotron-3-Nano", "sususau"),
    ("LFM2-1.2B", "cca"),
]


@pytest.mark.parametrize("type", ["F16", "Q4_0"])
@pytest.mark.parametrize(("name", "layers"), HYBRIDS)
def test_hybrids(name: str, layers: str, type: str, tmp_path: Path) -> None:
    """Made small; which layers have what is as in the true ones."""
    shape = replace(SHAPES[name], n_layers=len(layers), n_embd=128, n_heads=4, n_kv_heads=2)
    shape = replace(shape, n_ff=64, n_vocab=3000, context=512)
    if shape.n_states:
        shape = replace(shape, n_states=32, n_state_heads=4, n_state_groups=2, state_width=128)
    if shape.n_experts:
        shape = replace(shape, n_experts=8, n_used=2, n_ff_expert=32, n_ff_shared=64)
    path = tmp_path / "model.gguf"
    n_bytes = make_model(str(path), shape, type, embedding="Q8_0")
    roles = {"d": "ssm_norm.weight", "s": "ssm_d", "c": "shortconv.conv.weight"}
    roles |= {"a": "attn_k.weight", "u": "ffn_down_exps.weight"}
    with mmrt.Model(path) as model:
        assert model.file.nbytes == n_bytes
        for i, kind in enumerate(layers):
            assert f"blk.{i}.{roles[kind]}" in model.file
        logits = model.logits(list(range(200)))
    assert np.isfinite(logits).all() and 0.01 < logits.std() < 10


def test_the_command(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.make_model",
        "1.1B",
        "Q8_0",
        str(tmp_path / "model.gguf"),
    ]
    command += ["--n-layers", "1", "--n-embd", "64", "--n-ff", "64", "--n-heads", "2"]
    command += ["--n-kv-heads", "1", "--n-vocab", "300"]
    path = {"PYTHONPATH": f"{Path(mmrt.__file__).parents[1]}:{ROOT}"}
    done = subprocess.run(command, env=path, capture_output=True, text=True)
    assert done.returncode == 0 and "MB/s" in done.stdout, done.stderr
    with mmrt.open(tmp_path / "model.gguf") as file:
        assert file["blk.0.attn_q.weight"].shape == (64, 64)
    refused = subprocess.run([*command, "--n-embd", "72"], env=path, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "rows of 72" in refused.stderr
