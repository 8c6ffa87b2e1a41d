"""The bench of keys and values on the disk: its figures are of what it says."""

import json
from pathlib import Path

import pytest
import tiny_models

import mmrt
from bench import kept


def test_restart(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=2048).write(tmp_path / "m.gguf")
    found = kept.restart(str(path), 600, 2, None, evict=True)
    assert found["cached_tokens"] >= 512 and found["bytes"] > 0 and found["mapped_bytes"] > 0
    assert 0 < found["first_token_seconds"] < found["first_process_seconds"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_for_short_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the four regimes, as the documentation has them."""
    path = tiny_models.llama(type="Q8_0", context=1024).write(tmp_path / "m.gguf")
    lines = (kept.__doc__ or "").splitlines()
    given = [line.split("MODEL.gguf ")[1] for line in lines if "swap --evict" in line]
    assert len(given) == 4
    options = given[2].split("  ")[0].split()
    monkeypatch.setattr("sys.argv", ["kept", str(path), *options, "-r", "1", "--texts", "4"])
    kept.main()
    swap = json.loads(capsys.readouterr().out)["swap"]
    better = min(swap["save"], swap["read again"])
    assert swap["quicker / better"] == pytest.approx(swap["quicker"] / better)


def test_swap(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=2048).write(tmp_path / "m.gguf")
    with mmrt.Model(path, threads=2) as model:
        for policy in kept.POLICIES:
            assert kept.swap(model, policy, True, 100, 3, 1) > 0
        assert model.store.nbytes == model.store.mapped_nbytes == 0


def test_three_times_the_room(tmp_path: Path) -> None:
    path = tiny_models.llama(type="Q8_0", context=1024).write(tmp_path / "m.gguf")
    found = kept.room(str(path), 100, 9, 2, None)
    assert found["kv"] * 3 >= 9 * 6 * 4096 and found["tokens"] == 164
    for way in ("kv_dir", "swap", "read again"):
        made = found[way]
        assert made["whole"] == 9 and made["ended"] == 0 and made["gave_memory_up"] > 0
        assert 0 < made["most_kv"] <= found["kv"]
        if "peak" in made:  # memory cgroups can be made here
            assert made["kills"] == 0 and made["peak"] <= found["limit"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_ends_by_itself_is_told() -> None:
    found = kept.bounded(1 << 30, ["false"], "")
    assert found["whole"] == 0 and found["ended"] == 1
