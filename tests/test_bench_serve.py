"""The bench of the server: its figures are of what it says."""

from pathlib import Path

from served import write_talker

from bench import serve


def test_figures(tmp_path: Path) -> None:
    path = str(write_talker(tmp_path / "m.gguf"))
    found = serve.stream(path, 2, 1, 16)
    assert all(row["server / library"] > 0 for row in found.values())
    health = serve.health(path, 2, 1 << 20)
    assert health["tokens"] > 2000 and health["asked"] > 0 and health["worst"] > 0
    posts = serve.posts(path, 2, 60)
    kept = posts.get("200", 0) + posts.get("429", 0) + posts["left"]
    assert kept == 60 and posts["200"] > 0 and min(posts["resident"]) > 0
