"""Stages that do not come back: others take their layers over, and every text is complete."""

import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from stages import SECRET, Process, serving

import mmrt
from mmrt.cluster import coordinator, wire
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.split import split
from mmrt.errors import ClusterError

IDS = list(range(40))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=4, type="Q8_0", context=512)
    return model.write(tmp_path_factory.mktemp("takeover") / "m.gguf")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return file


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(wire, "CHALLENGE_SECONDS", 1.0)


@pytest.fixture
def processes(path: Path, secret: Path) -> Iterator[Callable[[str], Process]]:
    with ExitStack() as stack:

        def begin(layers: str) -> Process:
            process = Process(path, layers, secret)
            stack.callback(process.end)
            return process

        yield begin


def told(work: Callable[[], None]) -> str:
    """The warnings of it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work()
    return "\n".join(str(each.message) for each in found)


@pytest.mark.parametrize(
    ("lost", "harm"),
    [
        ("0:1", signal.SIGKILL),
        ("1:3", signal.SIGKILL),
        ("3:4", signal.SIGKILL),
        ("1:3", signal.SIGSTOP),
    ],
)
def test_another_stage_takes_the_layers(
    lost: str, harm: int, path: Path, processes: Callable[[str], Process]
) -> None:
    """Amid texts that write, with forks of one of them; a frozen one that wakes is of no plan."""
    layers = ["0:1", "1:3", "3:4"]
    stages = [processes(each) for each in layers]
    with mmrt.Model(path, exact=True) as model:
        wanted = model.generate(IDS, max_tokens=12)
        with model.sequence() as here:
            here.extend(IDS)
            logits = here.fork().extend([5])
    places = [stage.place for stage in stages]
    hosts: list[str] | Callable[[], list[str]] = places
    if harm == signal.SIGSTOP:
        hosts = lambda: places  # noqa: E731 - knows of no other stage
    with Cluster(hosts, SECRET, model=path, timeout=1, patience=0) as cluster:
        texts = [cluster.sequence()]
        texts[0].extend(IDS)
        texts.append(texts[0].fork())
        stream = cluster.stream(IDS, max_tokens=12)
        pieces = [next(stream).text for _ in range(4)]
        harmed = stages[layers.index(lost)].process
        os.kill(harmed.pid, harm)

        def go_on() -> None:
            pieces.extend(piece.text for piece in stream)
            np.testing.assert_array_equal(texts[1].extend([5]), logits)

        words = told(go_on)
        assert "texts wait for it" in words and f"layers {lost} are at 127.0.0.1:" in words
        assert ("".join(pieces), stream.tokens) == (wanted, 12)
        assert [f"{part.start}:{part.stop}" for _, part in cluster.stages] == layers
        os.kill(harmed.pid, signal.SIGCONT)
        np.testing.assert_array_equal(texts[0].extend([5]), logits)
        texts.clear()
        assert cluster._earlier is not None
        cluster._earlier.clear()
        assert cluster.store.sharing.held == 0


def test_a_long_prompt_goes_on_with_a_spare(
    path: Path, processes: Callable[[str], Process]
) -> None:
    """Its pieces follow one another without waiting when the stage is lost."""
    ids = [i % 250 for i in range(500)]
    with mmrt.Model(path, exact=True) as model:
        wanted = model.logits(ids)
    with (
        serving(path, range(0, 2), exact=True) as first,
        serving(path, range(2, 4), exact=True) as spare,
    ):
        last = processes("2:4")
        with Cluster([first, last.place, spare], SECRET, timeout=1, patience=0) as cluster:
            assert [place for place, _ in cluster.stages] == [first, last.place]
            os.kill(last.process.pid, signal.SIGKILL)
            found = []
            words = told(lambda: found.append(cluster.logits(ids)))
            np.testing.assert_array_equal(found[0], wanted)
            assert "a spare takes its place" in words
            assert [place for place, _ in cluster.stages] == [first, spare]


def test_where_nobody_has_the_layers(
    path: Path, secret: Path, tmp_path: Path, processes: Callable[[str], Process]
) -> None:
    """A file of some layers has no others."""
    part = tmp_path / "part.gguf"
    split(path, part, range(0, 2))
    last = processes("2:4")
    with (
        serving(part, None, exact=True) as first,
        Cluster([first, last.place], SECRET, timeout=1, patience=0) as cluster,
    ):
        cluster.logits([1])
        os.kill(last.process.pid, signal.SIGKILL)
        with (
            pytest.warns(UserWarning, match="texts wait for it"),
            pytest.raises(ClusterError, match=last.place),
        ):
            cluster.logits([2])


@pytest.mark.parametrize("asked", [b"", b"[1]", b"[2, 1]", b"[0, 9]", b'["a", "b"]', b"[NaN, 1]"])
def test_what_is_no_range_of_layers(asked: bytes, path: Path) -> None:
    """It ends that connection, and nothing else."""
    with serving(path, range(0, 2)) as place:
        connection = wire.connect(wire.parse_address(place), SECRET)
        connection.send(wire.Kind.TAKE, 1, asked)
        with pytest.raises(ClusterError):
            connection.receive(10)
        with socket.create_connection(wire.parse_address(place), 5):
            pass


def test_layers_for_a_coordinator_that_is_gone_are_given_up(path: Path) -> None:
    """Who takes over twice has one stage more, not two."""
    with serving(path, range(0, 2), exact=True) as first:
        ports = []
        for layers in (b"[2, 4]", b"[2, 3]"):
            connection = wire.connect(wire.parse_address(first), SECRET)
            connection.send(wire.Kind.TAKE, 1, layers)
            frame = connection.receive(30)
            assert frame is not None and frame.kind == wire.Kind.TAKEN
            ports.append(int(frame.payload))
            connection.close()
            if layers == b"[2, 4]":
                with Cluster([first, f"127.0.0.1:{ports[0]}"], SECRET) as cluster:
                    cluster.logits([1])
        with pytest.raises(ClusterError, match="cannot connect"):
            wire.connect(("127.0.0.1", ports[0]), SECRET)
        wire.connect(("127.0.0.1", ports[1]), SECRET).close()
