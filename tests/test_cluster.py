"""A coordinator and its stages: what one machine computes, several do, to the bit."""

import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny_architectures
import tiny_models
from command import call
from stages import SECRET, Process, serving, serving_all
from together import extend_together

import mmrt
from mmrt.cluster import coordinator, steps, wire
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.facts import Facts
from mmrt.cluster.server import StageServer
from mmrt.cluster.split import split
from mmrt.cluster.stage import Stage
from mmrt.cluster.wire import Kind
from mmrt.errors import (
    ArgumentError,
    ClusterError,
    DeniedFileError,
    FormatError,
    InUseError,
    MissingFileError,
    OutOfMemoryError,
    UnsupportedError,
)

IDS = np.random.default_rng(6).integers(0, 300, 400).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=4, type="Q8_0", context=512)
    return model.write(tmp_path_factory.mktemp("cluster") / "m.gguf")


@pytest.fixture(scope="module")
def hosts(path: Path) -> Iterator[list[str]]:
    with serving_all(path, [0, 1, 3, 4], threads=1) as places:
        yield places


@pytest.fixture
def cluster(hosts: list[str], path: Path) -> Iterator[Cluster]:
    with Cluster(hosts, SECRET, model=path, patience=0) as found:
        yield found


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path) as found:
        yield found


def life(model: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Prompts longer than a step, texts together, forks, rewinds, and texts that end."""
    yield model.logits(IDS[:300])
    with model.sequence() as one, model.sequence() as two:
        yield one.extend(IDS[:70])
        fork = one.fork()
        second = fork.fork()
        yield extend_together([(one, [1]), (two, IDS[70:90]), (fork, IDS[90:93])])
        assert one.truncate(40) == 40
        yield one.extend(IDS[200:212], outputs="all")
        third = one.fork()
        one.close()
        yield extend_together([(second, [5]), (third, [6, 7])])
        fork.close()
        yield two.extend([3])
        yield third.extend([4])
        yield one.extend([8, 9])


def test_logits_are_those_of_one_machine(cluster: Cluster, model: mmrt.Model) -> None:
    for found, wanted in zip(life(cluster), life(model), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("ends", [[0, 4], [0, 2, 4], [0, 1, 2, 3, 4]])
def test_any_number_of_stages(ends: list[int], path: Path, model: mmrt.Model) -> None:
    with serving_all(path, ends, threads=1) as places, Cluster(places[::-1], SECRET) as cluster:
        assert [layers.start for _, layers in cluster.stages] == ends[:-1]
        np.testing.assert_array_equal(cluster.logits(IDS[:50]), model.logits(IDS[:50]))


def test_stages_of_split_files(path: Path, model: mmrt.Model, tmp_path: Path) -> None:
    parts = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    split(path, parts[0], range(0, 2))
    split(path, parts[1], range(2, 4))
    with (
        serving(parts[0], None) as a,
        serving(parts[1], None) as b,
        Cluster([a, b], SECRET, model=parts[1]) as cluster,
    ):
        assert cluster.generate("Once", max_tokens=9) == model.generate("Once", max_tokens=9)


def test_rows_in_f16(hosts: list[str], model: mmrt.Model) -> None:
    wanted = model.logits(IDS[:50])
    with Cluster(hosts, SECRET, rows="f16") as cluster:
        found = cluster.logits(IDS[:50])
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


# ---- text ----


def test_generated_text(cluster: Cluster, model: mmrt.Model) -> None:
    options: Any = {"max_tokens": 20, "temperature": 0.8, "seed": 4}
    wanted = model.generate("Once upon a time", **options)
    found = cluster.generate("Once upon a time", **options)
    assert (found, found.finish, found.tokens) == (wanted, wanted.finish, wanted.tokens)
    with cluster.sequence() as there, model.sequence() as here:
        for prompt in ("Once", " upon"):
            texts = [
                each.generate(prompt, sequence=text, **options)
                for each, text in ((cluster, there), (model, here))
            ]
            assert texts[0] == texts[1] and there.tokens == here.tokens


def test_a_stream_that_is_closed(cluster: Cluster, model: mmrt.Model) -> None:
    stream = cluster.stream("Once", max_tokens=50)
    next(stream)
    with cluster.sequence() as text:
        other = cluster.stream("Once", sequence=text, max_tokens=50)
        next(other)
        with pytest.raises(InUseError):
            text.truncate(0)
        other.close()
        assert len(text) > 0
    stream.close()
    assert cluster.generate("Once", max_tokens=5) == model.generate("Once", max_tokens=5)


def test_texts_that_are_gone_leave_no_pages(path: Path) -> None:
    with Stage(path, threads=1) as stage:
        server = StageServer(stage, ("127.0.0.1", 0), SECRET)
        thread = threading.Thread(target=server.serve)
        thread.start()
        with Cluster(["{}:{}".format(*server.address)], SECRET) as cluster:
            texts = [cluster.sequence() for _ in range(5)]
            for text in texts:
                text.extend(IDS[:40])
            texts += [text.fork() for text in texts]
            texts[-1].extend([1])
            held = stage.program.store.nbytes
            del text, texts
            gc.collect()
            cluster.logits([1])
            assert 0 < stage.program.store.nbytes < held / 5
        deadline = time.monotonic() + 60
        while stage.program.store.nbytes:  # with its coordinator, what it had is gone
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.close()
        thread.join(60)


def test_threads_of_one_cluster(cluster: Cluster, model: mmrt.Model) -> None:
    wanted = [model.generate(IDS[i : i + 9], max_tokens=6) for i in range(4)]
    found: dict[int, str] = {}

    def work(i: int) -> None:
        found[i] = cluster.generate(IDS[i : i + 9], max_tokens=6)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(4)] == wanted


def test_what_texts_tell(cluster: Cluster, model: mmrt.Model) -> None:
    with cluster.sequence() as there, model.sequence() as here:
        there.extend(IDS[:40])
        here.extend(IDS[:40])
        assert (there.tokens, there.nbytes) == (here.tokens, here.nbytes)
    assert cluster.vocab_size == 300 and cluster.context == 512
    assert repr(cluster) == "<Cluster of 3 stages>"


def pages_of(text: mmrt.Sequence) -> tuple[list[int], int, int]:
    return [page.holders for page in text.pages()], text.nbytes, text.shared_nbytes


def test_pages_that_stages_hold_are_known(cluster: Cluster, model: mmrt.Model) -> None:
    """They follow from what texts do: compared with those of one machine, which counts them."""
    random = np.random.default_rng(9)
    before = model.store.sharing.copies
    texts = [(cluster.sequence(), model.sequence())]
    for _ in range(80):
        i, what = int(random.integers(len(texts))), random.choice(["extend", "fork", "cut", "end"])
        pair = texts[i]
        if what == "extend" and len(pair[0]) < 300:
            n = int(random.integers(1, 40))
            pair[0].extend(IDS[:n])
            pair[1].extend(IDS[:n])
        elif what == "fork" and len(texts) < 8:
            texts.append((pair[0].fork(), pair[1].fork()))
        elif what == "cut":
            length = int(random.integers(len(pair[0]) + 1))
            assert pair[0].truncate(length) == pair[1].truncate(length) == length
        elif what == "end" and len(texts) > 1:
            del texts[i], pair  # one is gone, and not told
            gc.collect()
        found, wanted = cluster.store.sharing, model.store.sharing
        assert found == wanted._replace(copies=wanted.copies - before)
        assert [pages_of(there) for there, _ in texts] == [pages_of(here) for _, here in texts]


def test_a_step_that_is_interrupted(cluster: Cluster, model: mmrt.Model) -> None:
    """Its result comes late, and is not taken for that of another."""
    with cluster.sequence() as text, model.sequence() as here:
        text.extend(IDS[:9])
        here.extend(IDS[:9])
        fork = text.fork()
        for interrupted in (text, fork):
            with (
                mock.patch.object(Cluster, "_next", side_effect=KeyboardInterrupt),
                pytest.raises(KeyboardInterrupt),
            ):
                interrupted.extend(IDS[30:35])
            assert len(interrupted) == 9
        wanted = extend_together([(here.fork(), [4]), (here, [5, 6])])
        np.testing.assert_array_equal(extend_together([(fork, [4]), (text, [5, 6])]), wanted)


@pytest.mark.parametrize("where", ["pack_step", "send"])
def test_a_step_that_is_interrupted_before_it_is_sent(
    where: str, cluster: Cluster, model: mmrt.Model
) -> None:
    owner = steps if where == "pack_step" else cluster._links[0].connection
    with cluster.sequence() as text:
        text.extend(IDS[:9])
        with (
            mock.patch.object(owner, where, side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            text.extend(IDS[30:35])
        assert len(text) == 9
        found, wanted = text.extend(IDS[9:12]), model.logits(IDS[:12])[-1]
        np.testing.assert_allclose(found, wanted, atol=1e-3)  # it was read again, in other steps


# ---- what is refused ----


def test_what_a_stage_refuses(cluster: Cluster, model: mmrt.Model) -> None:
    with cluster.sequence() as text, model.sequence() as here:
        text.extend(IDS[:5])
        here.extend(IDS[:5])
        with pytest.raises(ArgumentError, match="300"):
            text.extend([300])
        with pytest.raises(ArgumentError, match="513 tokens are more than the context of 512"):
            text.extend([0] * 508)
        with (
            mock.patch.object(Stage, "run", side_effect=OutOfMemoryError("no room")),
            pytest.raises(OutOfMemoryError, match=r"127\.0\.0\.1:[0-9]+: no room"),
        ):
            text.extend([1])
        assert len(text) == 5
        np.testing.assert_array_equal(text.extend(IDS[5:9]), here.extend(IDS[5:9]))


def test_a_step_that_fails_after_the_first_stage(
    cluster: Cluster, model: mmrt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stages before it have read is taken back, and forks in the step are told again."""
    run = Stage.run

    def fails(stage: Stage, *arguments: Any) -> Any:
        if stage.is_last:
            raise FormatError("on purpose")
        return run(stage, *arguments)

    with cluster.sequence() as text, model.sequence() as here:
        text.extend(IDS[:9])
        fork = text.fork()
        monkeypatch.setattr(Stage, "run", fails)
        for _ in range(2):
            with pytest.raises(FormatError, match="on purpose"):
                extend_together([(text, IDS[9:12]), (fork, [2])])
        monkeypatch.undo()
        here.extend(IDS[:9])
        wanted = extend_together([(here.fork(), [4]), (here, [5])])
        np.testing.assert_array_equal(extend_together([(fork, [4]), (text, [5])]), wanted)


def test_values_that_are_no_numbers_name_the_stage(tmp_path: Path) -> None:
    broken = tiny_models.llama(n_layers=2)
    broken.tensors["blk.1.ffn_norm.weight"].data.view(np.float32)[0] = np.nan
    path = broken.write(tmp_path / "m.gguf")
    with serving_all(path, [0, 1, 2]) as places, Cluster(places, SECRET) as cluster:
        words = rf"{places[1]}: .*'blk\.1\.ffn_norm\.weight' holds"
        with pytest.raises(FormatError, match=words):
            cluster.logits([1, 2])


def test_stages_that_are_no_model(path: Path, hosts: list[str], tmp_path: Path) -> None:
    other = tiny_models.llama(n_layers=4, type="Q8_0", context=512, n_ff=128)
    with (
        serving(other.write(tmp_path / "o.gguf"), range(3, 4)) as another,
        serving(path, range(3, 4), exact=True) as exact,
        serving(path, None) as whole,
    ):
        for places, words in {
            (hosts[0], hosts[2]): "layers 1:3 are on none",
            (hosts[1], hosts[2]): "layers 0:1 are on none",
            (hosts[0], hosts[1]): "layers 3:4 are on none of the stages",
            (*hosts, whole): "layers 0:1 are on others too",
            (*hosts[:2], another): f"{hosts[1]} and {another} have different models",
            (*hosts[:2], exact): "values f16, and .* exact: they must be alike",
        }.items():
            with pytest.raises(ArgumentError, match=words):
                Cluster(places, SECRET)
        with pytest.raises(ArgumentError, match=r"has another model than .*o\.gguf"):
            Cluster(hosts, SECRET, model=tmp_path / "o.gguf")


def test_hosts(hosts: list[str], tmp_path: Path, model: mmrt.Model) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"# three\n{hosts[2]}\n\n {hosts[0]} # the first\n{hosts[1]}\n")
    with Cluster(file, SECRET) as cluster:
        np.testing.assert_array_equal(cluster.logits([1, 2]), model.logits([1, 2]))
        with pytest.raises(ArgumentError, match="no tokenizer: pass it `model`"):
            cluster.generate("text")
    for wrong in ([], ["nowhere"]):
        with pytest.raises(ArgumentError):
            Cluster(wrong, SECRET)
    with pytest.raises(MissingFileError, match="hosts2"):
        Cluster(f"{file}2", SECRET)
    with pytest.raises(ArgumentError, match="the cluster is closed"):
        cluster.logits([1])
    with pytest.raises(ClusterError, match=r"the connection has ended|does not know"):
        Cluster(hosts, b"another, of the same length")


def test_facts_that_are_none() -> None:
    good = Facts(0, 1, 2, 0, 64, 512, 1024, 99, 5, 5, 6, 7, "m", "s")
    assert Facts.from_json(good.to_json()) == good
    for wrong in (b"", b"[]", b"{}", b"\xff", b"[" * 50000, good.to_json()[:-1]):
        with pytest.raises(ClusterError, match="no facts of a stage"):
            Facts.from_json(wrong)
    for name, value in (("first", -1), ("end", True), ("width", 1 << 50), ("model", 3)):
        data = json.dumps({**json.loads(good.to_json()), name: value}).encode()
        with pytest.raises(ClusterError, match=f"no fact of a stage: {name} is"):
            Facts.from_json(data)


# ---- frames out of turn ----


def test_a_later_coordinator_takes_the_stages(
    hosts: list[str], path: Path, model: mmrt.Model
) -> None:
    with Cluster(hosts, SECRET, patience=0) as first, model.sequence() as here:
        text = first.sequence()
        text.extend(IDS[:9])
        here.extend(IDS[:9])
        with Cluster(hosts, SECRET) as second:
            np.testing.assert_array_equal(second.logits([3]), model.logits([3]))
            with pytest.warns(UserWarning, match="texts wait"), pytest.raises(ClusterError):
                text.extend([1])
        assert len(text) == 9
        # It connects again, and reads again what the stages have forgotten.
        np.testing.assert_array_equal(text.extend([4]), here.extend([4]))


@pytest.mark.parametrize(
    ("kind", "epoch", "payload"),
    [
        (Kind.STEP, 1, b""),
        (Kind.JOIN, 1, b""),
        (Kind.RESULT, 1, b""),
        (Kind.PLANNED, 1, b""),
        (Kind.PLAN, 1, b"{}"),
        (Kind.PLAN, 1, b"["),
        (Kind.PLAN, 1, b'{"form": "f64", "next": null}'),
        (Kind.PLAN, 1, b'{"form": "f32", "next": 7}'),
        (Kind.PLAN, 1, b'{"form": "f32", "next": "nowhere"}'),
        (Kind.PLAN, 1, b'{"form": "f32", "next": null}'),  # out of date
    ],
)
def test_frames_out_of_turn(
    kind: Kind, epoch: int, payload: bytes, cluster: Cluster, hosts: list[str], model: mmrt.Model
) -> None:
    """They end the connection that they come by, and disturb no other."""
    cluster.logits([1])
    for place in hosts:
        connection = wire.connect(wire.parse_address(place), SECRET)
        connection.send(kind, epoch, payload)
        with pytest.raises(ClusterError):
            while (frame := connection.receive(60)) is not None:
                assert frame.kind == Kind.FAILED
    np.testing.assert_array_equal(cluster.logits([2]), model.logits([2]))


def test_random_frames_from_one_who_knows_the_secret(
    cluster: Cluster, hosts: list[str], model: mmrt.Model
) -> None:
    random = np.random.default_rng(9)
    for i in range(40):
        connection = wire.connect(wire.parse_address(hosts[i % 3]), SECRET)
        with suppress(ClusterError, OSError):
            for _ in range(3):
                kind = random.choice([k for k in Kind if k != Kind.PLAN])
                payload = random.bytes(int(random.integers(0, 200)))
                connection.send(kind, int(random.integers(0, 3)), payload)
            connection._socket.sendall(struct.pack("<4sBB", b"mmrt", 1, 8) + random.bytes(9))
        connection.close()
    np.testing.assert_array_equal(cluster.logits([2, 3]), model.logits([2, 3]))


def test_strangers_do_not_keep_others_out(hosts: list[str], model: mmrt.Model) -> None:
    host, port = wire.parse_address(hosts[0])
    strangers = [socket.create_connection((host, port)) for _ in range(20)]
    try:
        for stranger in strangers:
            with suppress(OSError):  # the oldest have been closed
                stranger.send(b"m")
        with Cluster(hosts, SECRET, patience=0) as cluster:
            np.testing.assert_array_equal(cluster.logits([2]), model.logits([2]))
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_challenge_has_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CHALLENGE_SECONDS", 0.2)
    ours, theirs = _tcp_pair()
    with ours, theirs:
        theirs.send(b"mmrt")
        with pytest.raises(ClusterError, match="no answer in time"):
            wire.accept(ours, SECRET)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


def test_recurrent_layers_are_refused(tmp_path: Path) -> None:
    path = tiny_architectures.tiny("lfm2", True, n_embd=64).write(tmp_path / "m.gguf")
    with Stage(path) as stage, pytest.raises(UnsupportedError, match="recurrent state"):
        StageServer(stage, ("127.0.0.1", 0), SECRET)


# ---- processes ----


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    file.chmod(0o600)
    return file


def test_a_stage_that_is_killed_comes_back(
    path: Path, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text waits for it, and goes on as it would have."""
    monkeypatch.setattr(coordinator, "_RETRY_SECONDS", 0.01)
    with mmrt.Model(path, exact=True) as model:
        wanted = model.generate(IDS[:40], max_tokens=12)
    first, last = Process(path, "0:2", secret), Process(path, "2:4", secret)
    processes = [first, last]
    try:
        with Cluster([first.place, last.place], SECRET, model=path, patience=60) as cluster:
            stream = cluster.stream(IDS[:40], max_tokens=12)
            pieces = [next(stream).text for _ in range(4)]
            last.end()
            port = int(last.place.rpartition(":")[2])
            processes.append(Process(path, "2:4", secret, port))
            with pytest.warns(UserWarning, match="texts wait for it"):
                pieces += [piece.text for piece in stream]
            assert ("".join(pieces), stream.tokens) == (wanted, 12)
    finally:
        for process in processes:
            process.end()


def test_what_the_command_refuses(path: Path, secret: Path, tmp_path: Path) -> None:
    stage = ("stage", path, "--secret-file", secret, "--listen")
    call(*stage, "here").assert_refused(1, "address: expected HOST:PORT")
    call(*stage, "192.0.2.1:0").assert_refused(1, "192.0.2.1:0: cannot listen")
    call(*stage, "lo:0", "--layers", "3:9").assert_refused(1, "layers: 3:9")
    secret.chmod(0o644)
    call(*stage, "lo:0").assert_refused(1, "others can read it: chmod 600")
    call("stage", path, "--listen", "lo:0").assert_refused(2, "--secret-file")


def test_secrets_in_files(secret: Path) -> None:
    assert wire.read_secret(secret) == SECRET
    secret.write_bytes(b"short")
    with pytest.raises(ArgumentError, match="16 bytes or more"):
        wire.read_secret(secret)
    secret.unlink()
    with pytest.raises(MissingFileError, match="secret"):
        wire.read_secret(secret)
    assert not issubclass(MissingFileError, DeniedFileError)
