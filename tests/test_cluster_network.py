"""Stages on hosts of their own: lines that are cut, and machines that stand still."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_models
from networks import in_network
from stages import SECRET

import mmrt
from bench.networks import Network
from mmrt.cluster import coordinator, wire
from mmrt.cluster.coordinator import Cluster

IDS = list(range(40))
N_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    tiny_models.llama(n_layers=4, type="Q8_0").write(folder / "m.gguf")
    (folder / "secret").write_bytes(SECRET)
    (folder / "secret").chmod(0o600)
    return folder


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(wire, "CHALLENGE_SECONDS", 2.0)
    monkeypatch.setattr(wire, "CONNECT_SECONDS", 2.0)


@contextmanager
def stages(network: Network, folder: Path) -> "Iterator[list[subprocess.Popen[str]]]":
    """Two of them, on hosts 1 and 2."""
    processes = []
    try:
        for layers in ("0:2", "2:4"):
            processes.append(
                network.start(
                    *(sys.executable, "-m", "mmrt", "stage", folder / "m.gguf", "--layers", layers),
                    *("--listen", "eth0:7600", "--secret-file", folder / "secret"),
                    *("--exact", "-t", 1),
                )
            )
        for number, process in enumerate(processes, 2):
            assert process.stdout is not None
            assert process.stdout.readline().endswith(f" listen at 10.0.0.{number}:7600\n")
        yield processes
    finally:
        for process in processes:
            process.kill()
            with process:  # closes what we talk over
                process.wait(60)


def assert_goes_on(
    folder: Path,
    harm: "Callable[[Network, list[subprocess.Popen[str]]], None]",
    heal: "Callable[[Network, list[subprocess.Popen[str]]], None]",
) -> None:
    """A text of one machine is that of two, one of which is harmed amid it, and heals."""
    with mmrt.Model(folder / "m.gguf", exact=True) as model:
        wanted = model.generate(IDS, max_tokens=N_TOKENS)

    def work(network: Network) -> None:
        hosts = ["10.0.0.2:7600", "10.0.0.3:7600"]
        with (
            stages(network, folder) as processes,
            Cluster(hosts, SECRET, model=folder / "m.gguf", timeout=1, patience=60) as cluster,
        ):
            stream = cluster.stream(IDS, max_tokens=N_TOKENS)
            text = "".join(next(stream).text for _ in range(4))
            harm(network, processes)
            healed = []

            def show(message: object, *_: object, **__: object) -> None:
                heal(network, processes)
                healed.append(str(message))

            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = show
                text += "".join(piece.text for piece in stream)
            assert (text, stream.tokens) == (wanted, N_TOKENS)
            assert healed and all("texts wait for it" in words for words in healed)

    in_network(work)


@pytest.mark.parametrize("number", [1, 2])
def test_a_line_that_is_cut_and_mended(number: int, folder: Path) -> None:
    """The first stage's is the coordinator's way in; the second's is a half-open one between two
    stages."""
    assert_goes_on(
        folder,
        lambda network, _: network.cut(number),
        lambda network, _: network.mend(number),
    )


@pytest.mark.parametrize("number", [0, 1])
def test_a_stage_that_stands_still(number: int, folder: Path) -> None:
    """It wakes with frames of an epoch that is over."""
    assert_goes_on(
        folder,
        lambda _, processes: os.kill(processes[number].pid, signal.SIGSTOP),
        lambda _, processes: os.kill(processes[number].pid, signal.SIGCONT),
    )


def test_a_stage_listens_where_it_is_told(folder: Path) -> None:
    def work(network: Network) -> None:
        with stages(network, folder) as processes:
            # Only at eth0's address: its own loopback does not reach it.
            inside = ["nsenter", "-n", "-t", str(processes[0].pid), sys.executable, "-c"]
            code = "import socket; socket.create_connection(('127.0.0.1', 7600), 5)"
            done = subprocess.run([*inside, code], capture_output=True, check=False)
            assert b"ConnectionRefusedError" in done.stderr

    in_network(work)
