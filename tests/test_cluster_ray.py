"""Stages as actors of a Ray that this file begins, and that ends with it."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models

import mmrt
from mmrt.cluster import coordinator, on_ray
from mmrt.cluster.on_ray import RayCluster, RayStages
from mmrt.errors import ClusterError

ray = pytest.importorskip("ray")

IDS = list(range(40))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=4, type="Q8_0")
    return model.write(tmp_path_factory.mktemp("ray") / "m.gguf")


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    """One for all tests, as it takes seconds to begin."""
    on_ray._begin("local")
    yield
    ray.shutdown()


def test_texts_are_those_of_one_machine_though_an_actor_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray begins it again, elsewhere: the coordinator asks where."""
    monkeypatch.setattr(coordinator, "_RETRY_SECONDS", 0.05)
    with mmrt.Model(path) as model:
        wanted = model.generate(IDS, max_tokens=12)
    cluster = RayCluster(path, [range(3), range(3, 4)], memory="512MiB", patience=60)
    with cluster:
        assert [layers for _, layers in cluster.stages] == [range(3), range(3, 4)]
        stream = cluster.stream(IDS, max_tokens=12)
        text = "".join(next(stream).text for _ in range(4))
        before = cluster.on_ray.processes()
        os.kill(before[1], signal.SIGKILL)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            text += "".join(piece.text for piece in stream)
        assert (text, stream.tokens) == (wanted, 12)
        assert "texts wait for it" in str(told[0].message)
        after = cluster.on_ray.processes()
        assert after[0] == before[0] and after[1] != before[1]


def test_layers_are_cut_as_nodes_are_measured(path: Path) -> None:
    with RayStages(path, context=64) as stages:
        assert len(stages.find()) == 1  # there is one node, and it has room
    assert ray.is_initialized()  # it was not begun for these stages


def test_what_ray_refuses(path: Path) -> None:
    with pytest.raises(ClusterError, match="layers"):
        RayStages(path, [range(9, 12)])
