"""The bench of drafts: it compares the same texts, with drafts and without."""

from pathlib import Path

import tiny_models

from bench import drafts


def test_compare(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=8192, n_layers=1).write(tmp_path / "m.gguf")
    found = drafts.compare(str(path), "ngram", 24, 2, threads=2)
    assert found.keys() == {"copying", "prose"}
    for task in found.values():
        assert task["plain"] > 0 and task["drafted"] > 0 and task["ratio"] > 0
        assert 0 < task["tokens a step"] <= 24
        assert "tokens right" in task["drafts"]
