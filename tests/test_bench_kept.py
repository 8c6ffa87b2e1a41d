"""The bench of keys and values on the disk: its figures are of what it says."""

from pathlib import Path

import tiny_models

import mmrt
from bench import kept


def test_restart(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=2048).write(tmp_path / "m.gguf")
    found = kept.restart(str(path), 600, 2, None, evict=True)
    assert found["cached_tokens"] >= 512 and found["bytes"] > 0 and found["mapped_bytes"] > 0
    assert 0 < found["first_token_seconds"] < found["first_process_seconds"]
    assert list(tmp_path.iterdir()) == [path]


def test_swap(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=2048).write(tmp_path / "m.gguf")
    with mmrt.Model(path, threads=2) as model:
        for policy in kept.POLICIES:
            assert kept.swap(model, policy, True, 100, 3, 1) > 0
        assert model.store.nbytes == model.store.mapped_nbytes == 0
