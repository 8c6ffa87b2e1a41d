"""Steps that follow one another without waiting: what they compute, and where they fail."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny_models
from stages import SECRET, serving_all
from together import extend_together

import mmrt
from mmrt.cluster import coordinator
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.stage import Stage
from mmrt.core.program import Part
from mmrt.errors import FormatError, UnsupportedError

IDS = np.random.default_rng(7).integers(0, 300, 400).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.gemma3(n_layers=4, window=24, context=512, n_ff=64)
    return model.write(tmp_path_factory.mktemp("pipeline") / "m.gguf")


@pytest.fixture
def cluster(path: Path) -> Iterator[Cluster]:
    with serving_all(path, [0, 1, 3, 4], threads=1) as hosts, Cluster(hosts, SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path) as found:
        yield found


def after(model: mmrt.Model, ids: list[int]) -> np.ndarray[Any, Any]:
    """Logits after the last of these alone."""
    with model.sequence() as sequence:
        return sequence.extend(ids)


def pieces_of(n: int) -> Any:
    return mock.patch.object(coordinator, "STEP_TOKENS", n)


def test_stages_work_at_once_on_a_long_prompt(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage does not begin before the first has the third piece."""
    run, third, calls = Stage.run, threading.Event(), itertools.count(1)

    def runs(stage: Stage, *arguments: Any) -> Any:
        if stage.is_first and next(calls) == 3:
            third.set()
        if stage.is_last:
            assert third.wait(20)
        return run(stage, *arguments)

    monkeypatch.setattr(Stage, "run", runs)
    with pieces_of(32), cluster.sequence() as text:
        found = text.extend(IDS)
    np.testing.assert_array_equal(found, after(model, IDS))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_piece_that_fails(
    failing: int, cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text holds what was read before it, on whichever stage, and goes on from there."""
    run, calls = Stage.run, itertools.count(1)

    def fails(stage: Stage, *arguments: Any) -> Any:
        if stage.layers.start == [0, 1, 3][failing] and next(calls) == 3:
            raise FormatError("on purpose")
        return run(stage, *arguments)

    with cluster.sequence() as text, model.sequence() as here:
        monkeypatch.setattr(Stage, "run", fails)
        with pieces_of(32), pytest.raises(FormatError, match="on purpose"):
            text.extend(IDS)
        assert text.tokens == IDS[:64]
        for first in (0, 32):
            here.extend(IDS[first : first + 32])
        np.testing.assert_array_equal(text.extend(IDS[64:80]), here.extend(IDS[64:80]))
    np.testing.assert_array_equal(cluster.logits(IDS[:9]), model.logits(IDS[:9]))


def test_a_failure_is_told_to_the_text_that_it_is_of(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Stage.run
    one, other = cluster.sequence(), cluster.sequence()
    one.extend(IDS[:9])

    def fails(stage: Stage, parts: Any, rows: Any) -> Any:
        if stage.is_last and len(parts[0].tokens) == 12:
            raise FormatError("on purpose")
        return run(stage, parts, rows)

    monkeypatch.setattr(Stage, "run", fails)
    cluster.run([Part(one._cache, np.arange(12, dtype=np.int32), 0)])
    np.testing.assert_array_equal(other.extend(IDS[:20]), after(model, IDS[:20]))
    assert len(one) == 9
    with pytest.raises(FormatError, match="on purpose"):
        one.extend([1])
    with model.sequence() as here:
        here.extend(IDS[:9])
        np.testing.assert_array_equal(one.extend([1]), here.extend([1]))


def test_texts_in_later_steps_of_one_that_fails(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read together: what comes after the failure is taken back from all of them."""
    run, calls = Stage.run, itertools.count(1)

    def fails(stage: Stage, *arguments: Any) -> Any:
        if stage.is_last and next(calls) == 2:
            raise FormatError("on purpose")
        return run(stage, *arguments)

    texts = [cluster.sequence() for _ in range(3)]
    monkeypatch.setattr(Stage, "run", fails)
    with pieces_of(32), pytest.raises(FormatError, match="on purpose"):
        extend_together([(text, IDS[i : i + 70]) for i, text in enumerate(texts)])
    assert [len(text) for text in texts] == [32, 0, 0]
    for i, text in enumerate(texts):
        with model.sequence() as here:
            if not i:
                here.extend(IDS[:32])
            np.testing.assert_array_equal(text.extend(IDS[:20]), here.extend(IDS[:20]))


def test_single_steps_cannot_be_exact(cluster: Cluster) -> None:
    with cluster.sequence() as text, pytest.raises(UnsupportedError, match="cannot be exact"):
        text.extend_exactly([1, 2])


def test_more_steps_than_are_under_way_at_once(cluster: Cluster, model: mmrt.Model) -> None:
    texts = [cluster.sequence() for _ in range(60)]
    for i, text in enumerate(texts):
        cluster.run([Part(text._cache, np.full(8, i, np.int32), 0)])
    for i in (0, 30, 59):
        with model.sequence() as here:
            here.extend([i] * 8)
            np.testing.assert_array_equal(texts[i].extend([3]), here.extend([3]))
