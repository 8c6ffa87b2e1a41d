"""The engine on stages: its texts are those that one machine writes alone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from stages import SECRET, serving_all

import mmrt
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.stage import Stage
from mmrt.errors import ArgumentError, FormatError, OutOfMemoryError

IDS = [3 + 7 * i % 250 for i in range(900)]
PROMPTS = [IDS[:n] for n in (1, 40, 33, 300, 64)] + [[9, *IDS[:100]], [9, *IDS[:99], 4, 4]]
ENDLESS: Any = {"ignore_eos": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=3, type="Q8_0", context=1024)
    return model.write(tmp_path_factory.mktemp("cluster") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path, exact=True) as found:
        yield found


@pytest.fixture(scope="module")
def hosts(path: Path) -> Iterator[list[str]]:
    with serving_all(path, [0, 1, 2, 3], threads=1, exact=True) as places:
        yield places


@pytest.fixture
def cluster(hosts: list[str], path: Path) -> Iterator[Cluster]:
    with Cluster(hosts, SECRET, model=path, patience=0) as found:
        yield found


def alone(model: mmrt.Model, prompts: Any, **options: Any) -> list[str]:
    return [str(model.generate(ids, **options)) for ids in prompts]


def test_texts_are_those_written_alone(cluster: Cluster, model: mmrt.Model) -> None:
    options: Any = {"max_tokens": 20, "temperature": 0.8, "seed": 3, **ENDLESS}
    with cluster.engine() as engine:
        handles = [engine.submit(ids, **options) for ids in PROMPTS]
        assert [str(handle.text()) for handle in handles] == alone(model, PROMPTS, **options)
        again = engine.submit(IDS[:300], **options)
        assert again.text() == handles[3].text() or again.cached_tokens == 292


def test_beginnings_are_read_once(cluster: Cluster) -> None:
    with cluster.engine() as engine:
        handles = [engine.submit([*IDS[:256], i], max_tokens=2, **ENDLESS) for i in range(6)]
        assert [handle.text().tokens for handle in handles] == [2] * 6
        assert engine.evaluated_tokens < 257 + 5 * 9 + 6 * 2
        assert sum(handle.cached_tokens >= 249 for handle in handles) == 5
        twins = [engine.submit(IDS[300:400], seed=i, max_tokens=3) for i in range(4)]
        before = engine.evaluated_tokens
        for twin in twins:
            twin.text()
        assert engine.evaluated_tokens - before <= 100 + 4 * 2


def test_texts_of_three_times_the_room(cluster: Cluster, model: mmrt.Model) -> None:
    """They are read again: no stage saves any."""
    prompts = [[i, *IDS[: 100 + 10 * i]] for i in range(8)]
    room = sum(len(ids) + 70 for ids in prompts) // 32 * cluster.store.page_bytes // 3
    most = 0
    with cluster.engine(kv=room) as engine:
        handles = [engine.submit(ids, max_tokens=70, **ENDLESS) for ids in prompts]
        for handle in handles:
            for _ in handle:
                most = max(most, cluster.store.nbytes)
        again = [engine.submit(ids, max_tokens=70, **ENDLESS) for ids in prompts]
        assert [str(each.text()) for each in again] == alone(
            model, prompts, max_tokens=70, **ENDLESS
        )
    assert [handle.tokens for handle in handles] == [70] * 8
    assert 0 < most <= room


def test_what_a_cancelled_text_held_is_free(cluster: Cluster, model: mmrt.Model) -> None:
    with cluster.engine(keep=0) as engine:
        stays = engine.submit(IDS[:50], max_tokens=30, **ENDLESS)
        goes = engine.submit(IDS[100:400], max_tokens=400, **ENDLESS)
        next(goes)
        goes.cancel()
        pieces = list(goes)
        assert all(piece.finish is None for piece in pieces)
        assert str(stays.text()) == alone(model, [IDS[:50]], max_tokens=30, **ENDLESS)[0]
        engine.submit([1], max_tokens=1).text()
        assert cluster.store.nbytes == 0


def test_a_step_that_fails_ends_its_texts(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, and the engine, go on."""
    run = Stage.run

    def fails(stage: Stage, parts: Any, rows: Any = None) -> Any:
        if stage.is_last and any(299 in part.tokens for part in parts):
            raise FormatError("on purpose")
        return run(stage, parts, rows)

    monkeypatch.setattr(Stage, "run", fails)
    with cluster.engine() as engine:
        before = engine.submit(IDS[:40], max_tokens=60, **ENDLESS)
        next(before)
        with pytest.raises(FormatError, match="on purpose"):
            engine.submit([*IDS[500:577], 299], max_tokens=2).text()
        after = engine.submit(IDS[:40], max_tokens=20, **ENDLESS)
        assert str(after.text()) == alone(model, [IDS[:40]], max_tokens=20, **ENDLESS)[0]


def test_a_stage_without_room_has_texts_give_theirs_up(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tightest stage decides, whatever the coordinator knows."""
    run = Stage.run

    def has_little(stage: Stage, parts: Any, rows: Any = None) -> Any:
        page = stage.program.store.page_bytes
        if stage.layers.start == 1 and stage.program.store.nbytes > 12 * page:
            raise OutOfMemoryError("no room")
        return run(stage, parts, rows)

    monkeypatch.setattr(Stage, "run", has_little)
    prompts = [[i, *IDS[: 90 + i]] for i in range(6)]
    with cluster.engine() as engine:
        handles = [engine.submit(ids, max_tokens=40, **ENDLESS) for ids in prompts]
        found = [str(handle.text()) for handle in handles]
        assert sum(handle.report.parked for handle in handles) > 0
    monkeypatch.undo()
    assert found == alone(model, prompts, max_tokens=40, **ENDLESS)


def test_an_engine_waits_for_a_stage_that_is_back(path: Path, model: mmrt.Model) -> None:
    """Its connections are cut: the texts are read again, and go on as they would have."""
    with (
        serving_all(path, [0, 1, 2, 3], threads=1, exact=True) as places,
        Cluster(places, SECRET, model=path, patience=30) as cluster,
        cluster.engine() as engine,
        pytest.warns(UserWarning, match="texts wait for it"),
    ):
        prompts = [[i, *IDS[: 50 + i]] for i in range(4)]
        handles = [engine.submit(ids, max_tokens=60, **ENDLESS) for ids in prompts]
        for handle in handles:
            next(handle)
        cluster._links[1].connection.close()
        wanted = alone(model, prompts, max_tokens=60, **ENDLESS)
        firsts = alone(model, prompts, max_tokens=1, **ENDLESS)
        found = [str(handle.text()) for handle in handles]
        assert found == [text[len(first) :] for text, first in zip(wanted, firsts, strict=True)]


def test_a_closed_cluster_ends_the_texts(hosts: list[str], path: Path) -> None:
    with Cluster(hosts, SECRET, model=path, patience=0) as cluster, cluster.engine() as engine:
        handle = engine.submit(IDS[:100], max_tokens=None, **ENDLESS)
        next(handle)
        cluster.close()
        with pytest.raises(ArgumentError, match="the cluster is closed"):
            list(handle)


def test_stages_work_on_different_texts_at_once(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one step is held up in the last stage, others go through the first."""
    run, held, passed = Stage.run, threading.Event(), threading.Event()

    def waits(stage: Stage, parts: Any, rows: Any = None) -> Any:
        if stage.is_last and held.is_set():
            assert passed.wait(60)
        elif stage.is_first and held.is_set():
            at_first.append(len(parts))
            if len(at_first) >= 2:  # of two steps, none of which has an answer
                passed.set()
        return run(stage, parts, rows)

    at_first: list[int] = []
    prompts = [[i, *IDS[: 20 + i]] for i in range(4)]
    monkeypatch.setattr(Stage, "run", waits)
    with cluster.engine() as engine:
        handles = [engine.submit(ids, max_tokens=60, **ENDLESS) for ids in prompts]
        firsts = [next(handle) for handle in handles]
        held.set()
        rest = [list(handle) for handle in handles]
    assert passed.is_set()
    found = ["".join(p.text for p in [a, *b]) for a, b in zip(firsts, rest, strict=True)]
    assert found == alone(model, prompts, max_tokens=60, **ENDLESS)


def test_a_long_prompt_that_fails_late_harms_no_other(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces follow one another, and what was entered in the tree of beginnings is gone."""
    run = Stage.run

    def fails(stage: Stage, parts: Any, rows: Any = None) -> Any:
        if stage.is_last and any(299 in part.tokens for part in parts):
            raise FormatError("on purpose")
        return run(stage, parts, rows)

    monkeypatch.setattr(Stage, "run", fails)
    with cluster.engine() as engine:
        begins = IDS[:240]
        bad = [engine.submit([*begins, 299, *IDS[:500], i], max_tokens=2) for i in range(3)]
        for handle in bad:
            with pytest.raises(FormatError, match="on purpose"):
                handle.text()
        good = [engine.submit([*begins, i], max_tokens=9, **ENDLESS) for i in range(3)]
        found = [str(handle.text()) for handle in good]
        assert found == alone(model, [[*begins, i] for i in range(3)], max_tokens=9, **ENDLESS)
        again = engine.submit([*begins, *IDS[:300]], max_tokens=3, **ENDLESS)
        assert (
            str(again.text()) == alone(model, [[*begins, *IDS[:300]]], max_tokens=3, **ENDLESS)[0]
        )
