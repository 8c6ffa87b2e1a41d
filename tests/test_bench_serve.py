"""The bench of the server: its figures are of what it says."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from served import running, write_talker

from bench import beside, serve, soak
from bench.workloads import WORKLOADS, Sizes


def test_figures(tmp_path: Path) -> None:
    path = str(write_talker(tmp_path / "m.gguf"))
    found = serve.stream(path, 2, 1, 16)
    assert list(found) == ["1 at once", "4 at once", "8 at once", "16 at once"]
    assert all(row["server / library"] > 0 for row in found.values())
    assert found["1 at once"]["server / one"] == 1
    health = serve.health(path, 2, 1 << 20)
    assert health["tokens"] > 2000 and health["asked"] > 0 and health["worst"] > 0
    posts = serve.posts(path, 2, 60)
    kept = posts.get("200", 0) + posts.get("429", 0) + posts["left"]
    assert kept == 60 and posts["200"] > 0 and min(posts["resident"]) > 0


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path = str(write_talker(tmp_path / "m.gguf"))
    with serve.served(path, 2, *soak.OPTIONS) as (port, pid):
        found = soak.run(port, pid, 0.05)
        # So short a time is no measure of memory.
        assert not [text for text in found["problems"] if "anonymous" not in text], found
        assert found["requests"]["all"] > found["requests"]["warm-up"] > 100
        fewer = {name: value // 3 for name, value in found["before"].items()}
        changed = list(soak._problems(soak.State(**fewer), soak.State(**found["after"])))
        assert [text.partition(":")[0] for text in changed[:2]] == ["descriptors", "threads"]


@pytest.mark.slow
def test_workloads_of_servers_in_turns(tmp_path: Path) -> None:
    """Of two, which are the same here."""
    path = write_talker(tmp_path / "m.gguf", context=4096)
    started: list[str] = []

    def start(name: str) -> beside.Start:
        @contextmanager
        def own() -> Iterator[int]:
            started.append(name)
            with running({"it": path}) as server:
                yield server.port

        return own

    sizes, names = Sizes(0.02, 0.001), list(WORKLOADS)
    rows, second = beside.compare({"a": start("a"), "b": start("b")}, names, 1, sizes)
    assert started == ["a", *["a", "b"] * len(names)] and second > 0
    for of in rows.values():
        for found in of.values():
            assert found["failed"] == 0 and found["tokens/s"] > 0
        same = ("requests", "prompt tokens")  # the same is asked of both
        assert [of["a"][name] for name in same] == [of["b"][name] for name in same]
    turns, branches = rows["turns"]["a"], rows["branches"]["a"]
    assert turns["requests"] == 50 and turns["evaluated"] < 0.5 * turns["prompt tokens"]
    assert branches["requests"] == 4 and branches["evaluated"] < 0.6 * branches["prompt tokens"]
    assert {"short first token", "long whole, p95"} <= rows["mixed"]["b"].keys()
    assert "| turns | first first token |" in beside.table(rows)
    drawing = beside.plot("Seconds", rows)
    assert drawing.height > 300


def test_what_a_server_refuses_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_talker(tmp_path / "m.gguf", context=64)
    with running({"it": path}) as server:
        talks = WORKLOADS["branches"](Sizes(0.02, 0.0), 0, 1.0)
        found = beside.run(server.port, talks)
    assert found == {"requests": 4, "failed": 4}
    assert "failed: 400" in capsys.readouterr().out


def test_the_rate_is_that_while_all_are_written() -> None:
    assert serve.rate([[0.0, 1.0, 2.0, 3.0, 4.0]], 5) == 1
    first, last = [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]
    assert serve.rate([first, last], 4) == 2
    assert serve.rate([first, last], 8) == 4  # two tokens a piece


def test_answers_at_once_through_two_servers() -> None:
    rates = {"library": {1: [1.0, 2.0], 4: [4.0, 4.0]}, "server": {1: [1.0, 1.0], 4: [2.0, 4.0]}}
    rates["llama-server"] = {1: [2.0, 2.0], 4: [1.0, 4.0]}
    assert serve.beside_each_other(rates, 4) == {
        "library": 4,
        "server": 3,
        "llama-server": 2.5,
        "library / one": 3,
        "server / one": 3,
        "llama-server / one": 1.25,
        "server / library": 0.75,
        "server / llama-server": 1.5,
        "library / llama-server": 2.5,
    }
