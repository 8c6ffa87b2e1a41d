"""States of recurrent models in files: a later process goes on where checkpoints were."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_architectures

import mmrt
from mmrt.run.worth import Worth

IDS = np.random.default_rng(6).integers(0, 290, 500).tolist()
OPTIONS: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
BEGINS = 298  # a control token

Open = Callable[..., mmrt.Model]


@pytest.fixture(scope="module", params=tiny_architectures.HYBRIDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_architectures.tiny(request.param, True, type="Q8_0", n_embd=64)
    return made.write(tmp_path_factory.mktemp("states") / "m.gguf")


@pytest.fixture
def opened(path: Path, tmp_path: Path) -> Iterator[Open]:
    models = []

    def open_(**options: Any) -> mmrt.Model:
        models.append(mmrt.Model(path, exact=True, threads=2, kv_dir=tmp_path, **options))
        return models[-1]

    yield open_
    for model in models:
        model.close()


def write(opened: Open, prompt: list[int]) -> str:
    """Another process's work, as far as files go."""
    with opened() as model:
        return model.generate(prompt, **OPTIONS)


def alone(path: Path, prompt: list[int]) -> str:
    with mmrt.Model(path, exact=True, threads=2) as model:
        return model.generate(prompt, **OPTIONS)


def test_a_later_process_goes_on(opened: Open, path: Path) -> None:
    system, question, other = IDS[:300], [BEGINS, *IDS[300:380]], [BEGINS, *IDS[400:450]]
    written = write(opened, [*system, *question])
    for prompt, cached in (
        ([*system, *question], 300 + 81 - 8),  # the same
        ([*system, *question, *other], 300 + 81 - 8),  # it goes on otherwise
        ([*system, *other], 300),  # another question
        ([*IDS[:200], *other], 0),
    ):
        with opened() as model:
            text = model.generate(prompt, **OPTIONS)
            assert text == alone(path, prompt) and text.cached_tokens == cached
    with opened() as model, model.engine() as engine:
        handle = engine.submit([*system, *question], **OPTIONS)
        assert handle.text() == written
        assert engine.evaluated_tokens == 8 + handle.tokens - 1


def test_what_is_there_is_not_written_again(opened: Open) -> None:
    for _ in range(2):
        write(opened, IDS[:300])
    with opened() as model:
        assert model.saved is not None
        before = model.saved.report.files
        model.generate(IDS[:300], **OPTIONS)
        model.saved.close()
        assert model.saved.report.files == before and model.saved.report.written == 0


@pytest.mark.parametrize("damage", ["header", "pages", "state", "cut", "longer"])
def test_damage_is_noticed(opened: Open, path: Path, tmp_path: Path, damage: str) -> None:
    """The file goes, with a word and a count; what is left of the text serves."""
    write(opened, IDS[:120])
    for file in tmp_path.rglob("*.kv"):
        size = file.stat().st_size
        if damage == "cut":
            os.truncate(file, size - 64)
        elif damage == "longer":
            os.truncate(file, size + 64)
        else:
            content = bytearray(file.read_bytes())
            content[{"header": 40, "pages": 4100, "state": -20}[damage]] ^= 1
            file.write_bytes(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = opened()
        text = model.generate(IDS[:120], **OPTIONS)
    assert text == alone(path, IDS[:120]) and text.cached_tokens == 0
    assert model.saved is not None and model.saved.report.damaged > 0
    assert len([one for one in said if "damaged" in str(one.message)]) == model.saved.report.damaged


def test_files_stay_within_their_room(opened: Open, path: Path) -> None:
    with opened(kv_dir_size="1MiB") as model:
        for i in range(12):
            prompt = [i, *IDS[:150]]
            text = model.generate(prompt, **OPTIONS)
            assert text == alone(path, prompt) or i > 1
        assert model.saved is not None
        model.saved.close()
        assert 0 < model.saved.report.bytes <= 1 << 20


def test_parked_texts_keep_their_state_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on where they were: not a token is read again."""
    monkeypatch.setattr(Worth, "saving", lambda *_: True)
    monkeypatch.setattr(Worth, "loading", lambda *_: True)
    prompts = [[i, *IDS[:40]] for i in range(3)]
    options = OPTIONS | {"max_tokens": 120}
    with mmrt.Model(path, exact=True, threads=2) as model:
        expected = [str(model.generate(ids, **options)) for ids in prompts]
        store = model.store
        with model.engine(kv=12 * store.page_bytes + 6 * store.block_bytes, keep=0) as engine:
            handles = [engine.submit(ids, **options) for ids in prompts]
            assert [str(handle.text()) for handle in handles] == expected
            assert sum(handle.report.parked for handle in handles) > 0
            assert engine.evaluated_tokens == sum(len(ids) + 119 for ids in prompts)
        assert store.nbytes == store.mapped_nbytes == 0
