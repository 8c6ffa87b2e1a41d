"""`mmrt experts`."""

from pathlib import Path

import pytest
import tiny_models
from command import call

from mmrt.sight import routing


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_models.qwen3moe(n_layers=3)
    return tiny.write(tmp_path_factory.mktemp("experts") / "m.gguf")


def test_a_text(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv.xz"
    ended = call("experts", path, "a text", "-n", "4", "--trace", out, "--temp", "0")
    assert ended.status == 0, ended.err
    trace = routing.read(out)
    assert trace.steps[1:] == [1, 1, 1] and trace.steps[0] > 1 and len(trace.layers) == 3
    assert f"{trace.n_tokens}, 4" in ended.out and "the same as 1 before" in ended.out


def test_ids_and_replay(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    assert call("experts", path, "--ids", "0:20,7,5:6", "--trace", out).status == 0
    trace = routing.read(out)
    assert trace.steps == [1] * 22
    ended = call("experts", "--replay", out, "--skip", "2")
    assert ended.status == 0, ended.err
    table = [line.split() for line in ended.out.split("cache  ", 1)[1].splitlines()[1:9]]
    found = [[float(cell.rstrip("%")) for cell in row[4:7]] for row in table]
    assert all(belady >= max(score, lru) for score, lru, belady in found)
    assert found == sorted(found, key=lambda row: row[2]) and found[-1][2] > found[0][2]
    sized = call(
        *("experts", "--replay", out, "--cache", trace.bank_bytes, "--disk", "1GB"),
        *("--bandwidth", "10GB", "--html", tmp_path / "p.html"),
    )
    row = sized.out.split("tokens/s\n")[1].splitlines()[0].split()
    assert row[2] == "100%" and float(row[-1]) > 0
    assert "layer 2" in (tmp_path / "p.html").read_text()


def test_a_picture_on_stdout_is_alone(path: Path) -> None:
    ended = call("experts", path, "--ids", "1,2", "--html", "-")
    assert ended.out.startswith("<!") and ended.out.rstrip().endswith(">")


def test_refusals(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    out.write_text("step,layer,expert\n0,0,1\n")
    for words, status, why in [
        (("--replay", out, "text"), 2, "--replay takes no model"),
        ((path, "text", "--skip", "3"), 2, "go with --replay"),
        (("--replay", out, "--disk", "1GB"), 2, "both --disk and --bandwidth"),
        (("--replay", out, "--skip", "1"), 2, "the trace has 1 steps"),
        (("--replay", out, "--cache", "1GiB"), 1, "says no expert_bytes"),
        (("--replay", tmp_path / "gone.csv"), 1, "gone.csv"),
        ((path, "--ids", "5:x"), 2, "expected ids such as"),
        ((path, "--ids", "7:7"), 2, "0 ids"),
        ((path, "--ids", "0:999999999"), 2, "1048576 ids"),
        ((path, "--ids", "999999"), 1, "999999"),
        ((path, "--ids", "1", "-p", "text"), 2, "in place of a prompt"),
    ]:
        ended = call("experts", *words)
        assert (ended.status, ended.err.count("\n")) == (status, 1), ended
        assert why in ended.err, ended
    dense = tiny_models.llama().write(tmp_path / "dense.gguf")
    call("experts", dense, "--ids", "1").assert_refused(1, "dense.gguf", "no experts")
