"""The bench of drafts: it compares the same texts, with drafts and without."""

from pathlib import Path

import numpy as np
import tiny_models

import mmrt
from bench import drafts
from bench.dequantise import dequantise
from mmrt.files.quantizer import quantize


def test_compare(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=8192, n_layers=1).write(tmp_path / "m.gguf")
    found = drafts.compare(str(path), "ngram", 24, 2, threads=2)
    assert found.keys() == {"copying", "prose"}
    for task in found.values():
        assert task["plain"] > 0 and task["drafted"] > 0 and task["ratio"] > 0
        assert 0 < task["tokens a step"] <= 24
        assert "tokens right" in task["drafts"]
        assert "weights" in task["memory"]


def test_a_twin_of_a_model_that_was_dequantised(tmp_path: Path) -> None:
    shape = {"n_embd": 256, "n_ff": 256, "head_dim": 64, "n_layers": 1}
    source = tiny_models.llama(type="Q4_K", context=8192, **shape).write(tmp_path / "q.gguf")
    target, twin = str(tmp_path / "f16.gguf"), str(tmp_path / "twin.gguf")
    dequantise(str(source), target)
    with mmrt.open(source) as old, mmrt.open(target) as new:
        assert list(old) == list(new)
        assert new.metadata["general.file_type"] == 1
        for name, tensor in old.items():
            assert new[name].type == ("F16" if tensor.ndim > 1 else "F32")
            expected = tensor.dequantize().astype(np.float16)
            assert np.array_equal(new[name].dequantize().astype(np.float16), expected)
    quantize(target, twin, "Q2_K")
    found = drafts.compare(target, twin, 32, 1, threads=2)["prose"]
    right, tried = map(int, found["right by depth"][1].split(" of "))
    assert 0 <= right <= tried and tried > 0
