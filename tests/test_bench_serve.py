"""The bench of the server: its figures are of what it says."""

from pathlib import Path

from served import write_talker

from bench import serve, soak


def test_figures(tmp_path: Path) -> None:
    path = str(write_talker(tmp_path / "m.gguf"))
    found = serve.stream(path, 2, 1, 16)
    assert all(row["server / library"] > 0 for row in found.values())
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
