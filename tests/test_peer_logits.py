"""Every architecture's logits beside llama.cpp's, where llama-cpp-python is installed."""

from pathlib import Path

import pytest
from peer_logits import compare
from tiny_architectures import CHANGES

pytest.importorskip("llama_cpp")

# Where llama.cpp rounds to float16 elsewhere too: it looks GELU up in a table.
ROUNDED = dict.fromkeys(("gemma2", "gemma3", "qwen2vl"), 1e-6)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "bare"])
@pytest.mark.parametrize("architecture", sorted(CHANGES))
def test_logits_are_those_of_llama_cpp(architecture: str, rich: bool, tmp_path: Path) -> None:
    found = compare(architecture, rich, tmp_path)
    assert found.formulas < ROUNDED.get(architecture, 1e-9)
    assert found.found < max(1e-6, found.rounding)
