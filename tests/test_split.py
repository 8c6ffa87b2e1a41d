"""Files of some layers: they hold what a stage needs, and no model takes one for a whole."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from command import call
from test_stage import Texts, life, whole
from tiny_architectures import tiny

import mmrt
from mmrt.cluster.split import split
from mmrt.cluster.stage import Stage
from mmrt.errors import ArgumentError, FormatError, UnsupportedError


def split_into(path: Path, *ranges: range) -> list[Path]:
    parts = [path.with_name(f"{layers.start}.gguf") for layers in ranges]
    for part, layers in zip(parts, ranges, strict=True):
        split(path, part, layers)
    return parts


@pytest.mark.parametrize(
    ("architecture", "rich"), [("llama", True), ("granite", True), ("opt", True), ("gemma3", True)]
)
def test_stages_of_the_parts_are_the_whole(architecture: str, rich: bool, tmp_path: Path) -> None:
    model = tiny(architecture, rich)
    n = model.metadata[f"{architecture}.block_count"]
    path = model.write(tmp_path / "m.gguf")
    parts = split_into(path, range(0, 2), range(2, n))
    assert not set(mmrt.open(parts[0])) & {"blk.2.attn_q.weight", "output_norm.weight"}
    assert "blk.1.attn_q.weight" not in mmrt.open(parts[1])
    with Stage(parts[0]) as first, Stage(parts[1]) as last:
        assert (first.layers, last.layers) == (range(0, 2), range(2, n))
        for found, wanted in zip(life(Texts([first, last])), whole(path), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_a_part_of_a_part(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    (part,) = split_into(path, range(1, 4))
    split(part, tmp_path / "p.gguf", range(2, 3))
    with Stage(tmp_path / "p.gguf") as stage:
        assert stage.layers == range(2, 3)
    with Stage(part, range(3, 4)) as stage:
        assert stage.is_last and not stage.is_first
    with pytest.raises(ArgumentError, match=r"layers: 0:2 are none of those .* has, 1:4"):
        Stage(part, range(0, 2))


def test_metadata_stay_and_say_which_layers(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    (part,) = split_into(path, range(1, 2))
    with mmrt.open(path) as file, mmrt.open(part) as some:
        assert dict(some.metadata) == {**file.metadata, "mmrt.layers": [1, 2]}
        for name, tensor in some.items():
            np.testing.assert_array_equal(tensor.blocks(), file[name].blocks())


def test_no_model_runs_a_part(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    (part,) = split_into(path, range(0, 2))
    with pytest.raises(UnsupportedError, match=r"only layers 0:2 of a model, which a Stage runs"):
        mmrt.Model(part)


@pytest.mark.parametrize("value", [[0], [1, 1], [2, 1], [0, 5], [-1, 2], 3, "0:2", [0.0, 2.0]])
def test_wrong_layers_in_a_file(value: object, tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=4)
    model.metadata["mmrt.layers"] = value
    path = model.write(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match=r"m.gguf: mmrt\.layers: expected"):
        Stage(path)


def test_what_is_refused_leaves_no_file(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match="is the file to be read"):
        split(path, path, range(0, 2))
    with pytest.raises(ArgumentError, match="layers: 3:5"):
        split(path, tmp_path / "p.gguf", range(3, 5))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_the_command(tmp_path: Path) -> None:
    path = tiny_models.llama(n_layers=4).write(tmp_path / "m.gguf")
    done = call("split", path, tmp_path / "p.gguf", "--layers", "1:3")
    assert (done.status, done.err) == (0, "") and "of 2 layers in" in done.out
    with Stage(tmp_path / "p.gguf") as stage:
        assert stage.layers == range(1, 3)
    for wrong in ("3", "3:1", "a:b", "-1:2", "2:2"):
        refused = call("split", path, tmp_path / "q.gguf", f"--layers={wrong}")
        refused.assert_refused(2, "expected layers as A:B", wrong)
    call("split", path, tmp_path / "q.gguf", "--layers", "3:9").assert_refused(1, "layers: 3:9")
