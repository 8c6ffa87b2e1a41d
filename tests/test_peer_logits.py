"""Every architecture's logits beside llama.cpp's, where llama-cpp-python is installed."""

from pathlib import Path

import numpy as np
import oracle
import pytest
from peer_logits import F16, IDS, WITHOUT_PEER, compare, mean_kl, of_llama_cpp
from tiny_architectures import CHANGES, tiny
from tiny_models import Blocks, random_blocks

import mmrt

pytest.importorskip("llama_cpp")

# Where llama.cpp rounds to float16 elsewhere too: it looks GELU up in a table.
ROUNDED = dict.fromkeys(("gemma2", "gemma3", "qwen2vl"), 1e-6)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "bare"])
@pytest.mark.parametrize("architecture", sorted(CHANGES.keys() - WITHOUT_PEER))
def test_logits_are_those_of_llama_cpp(architecture: str, rich: bool, tmp_path: Path) -> None:
    found = compare(architecture, rich, tmp_path)
    assert found.formulas < ROUNDED.get(architecture, 1e-9)
    assert found.found < max(1e-6, found.rounding)


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """With experts in MXFP4: both round what these read, and neither may be much further from the
    exact result than the other."""
    model, random = tiny("gpt-oss", True), np.random.default_rng(5)
    for name, (_, data) in model.tensors.items():
        if name.endswith("_exps.weight"):
            experts, rows, bytes = data.shape
            flat = random_blocks(random, "MXFP4", experts * rows, bytes // 4, 2 / bytes**0.5)
            model.tensors[name] = Blocks("MXFP4", flat.data.reshape(experts, rows, -1))
    path = model.write(tmp_path / "mxfp4.gguf")
    exact = oracle.logits(path, IDS)
    with mmrt.Model(path) as mmrt_model:
        found = mean_kl(exact, mmrt_model.logits(IDS))
    assert found < 3 * mean_kl(exact, of_llama_cpp(path, IDS, F16))
