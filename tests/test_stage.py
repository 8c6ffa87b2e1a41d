"""Models cut into stages: the logits are those of the whole, to the bit."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from numpy.typing import NDArray
from tiny_architectures import CHANGES, tiny
from tiny_models import TinyModel

import mmrt
from mmrt.cluster.stage import Stage
from mmrt.core.program import Part
from mmrt.core.state import Cache
from mmrt.errors import ArgumentError, FormatError, OutOfMemoryError, UnsupportedError
from mmrt.memory import counters
from mmrt.memory.budget import Budget

Rows = NDArray[np.float32]

MIB = 1 << 20
IDS = np.random.default_rng(5).integers(0, 300, 120).tolist()


class Texts:
    """Texts by name, which a model or a chain of stages reads."""

    def __init__(self, chain: Sequence[mmrt.Model | Stage]) -> None:
        self.chain = chain
        self.caches: dict[str, list[Cache]] = {}

    def step(self, *given: tuple[str, Sequence[int], int]) -> Rows:
        rows: Rows | None = None
        for i, stage in enumerate(self.chain):
            parts = [
                Part(self._of(name)[i], np.array(ids, np.int32), outputs)
                for name, ids, outputs in given
            ]
            if isinstance(stage, Stage):
                rows = stage.run(parts, rows)
            else:
                n = sum(part.outputs for part in parts)
                rows = np.empty((n, stage.vocab_size), np.float32)
                stage.run(parts, rows if n else None)
        assert rows is not None
        return rows

    def _of(self, name: str) -> list[Cache]:
        if name not in self.caches:
            self.caches[name] = [Cache(stage.program.store) for stage in self.chain]
        return self.caches[name]

    def fork(self, name: str, fork: str) -> None:
        self.caches[fork] = [cache.fork() for cache in self._of(name)]

    def cut(self, name: str, length: int) -> None:
        reached = {cache.truncate(length) for cache in self._of(name)}
        assert reached in ({length}, {0})  # recurrent ones go back to nothing alone


def life(texts: Texts) -> Iterator[Rows]:
    """Prompts, steps, several texts, forks and rewinds."""
    yield texts.step(("a", IDS[:40], 0), ("b", IDS[50:53], 1))
    yield texts.step(("a", IDS[40:41], 1))
    texts.fork("a", "c")
    yield texts.step(("a", [7], 1), ("b", [8, 9], 2), ("c", IDS[60:70], 3))
    texts.cut("a", 33)
    yield texts.step(("a", [1, 2], 1), ("a", [3], 1))
    texts.fork("c", "d")
    texts.cut("d", 0)
    yield texts.step(("d", IDS[:20], 20), ("c", [5], 1))
    for token in IDS[100:104]:
        yield texts.step(("c", [token], 1))


@contextmanager
def stages_of(path: Path, cuts: Sequence[int], n_layers: int, **options: object) -> Iterator[Texts]:
    ends = [0, *cuts, n_layers]
    with ExitStack() as stack:
        stages = [
            stack.enter_context(Stage(path, range(*pair), **options))  # type: ignore[arg-type]
            for pair in itertools.pairwise(ends)
        ]
        yield Texts(stages)


def whole(path: Path, **options: object) -> list[Rows]:
    with mmrt.Model(path, **options) as model:  # type: ignore[arg-type]
        return list(life(Texts([model])))


def assert_same(path: Path, cuts: Sequence[int], n_layers: int, **options: object) -> None:
    expected = whole(path, **options)
    with stages_of(path, cuts, n_layers, **options) as texts:
        for found, wanted in zip(life(texts), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def layers_of(model: TinyModel) -> int:
    prefix = model.metadata["general.architecture"]
    predicting = model.metadata.get(f"{prefix}.nextn_predict_layers", 0)
    return int(model.metadata[f"{prefix}.block_count"]) - int(predicting)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "bare"])
@pytest.mark.parametrize("architecture", sorted(CHANGES))
def test_every_architecture(architecture: str, rich: bool, tmp_path: Path) -> None:
    model = tiny(architecture, rich)
    n, path = layers_of(model), model.write(tmp_path / "m.gguf")
    if (architecture, rich) == ("gemma4", True):  # layers share what earlier ones have
        for layers in (range(1), range(1, n)):
            with pytest.raises(UnsupportedError, match=r"m\.gguf: .* only all of them run"):
                Stage(path, layers)
        assert_same(path, [], n)
        return
    assert_same(path, [1, n // 2, n - 1], n, threads=2)


@pytest.mark.parametrize("cuts", [[1], [3], [5], [1, 2], [2, 5], [1, 3, 4]])
@pytest.mark.parametrize("exact", [False, True])
def test_every_cut(cuts: list[int], exact: bool, tmp_path: Path) -> None:
    """The first layers are wider, matrices are quantised, the embedding is the output too."""
    widths = [256, 256, 128, 96, 96, 96]
    model = tiny_models.llama(n_layers=6, n_ff=widths, type="Q8_0", types={"ffn_up": "Q4_0"})
    assert_same(model.write(tmp_path / "m.gguf"), cuts, 6, exact=exact)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_types_of_keys_and_values(kv: str, tmp_path: Path) -> None:
    model = tiny_models.gemma3(n_layers=7, head_dim=32)
    assert_same(model.write(tmp_path / "m.gguf"), [2, 6], 7, kv_k=kv, kv_v=kv)


# ---- memory ----


def test_streamed_weights(tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=4, type="Q8_0", n_embd=128, n_ff=512, separate_output=True)
    path = model.write(tmp_path / "m.gguf")
    expected = whole(path)
    with stages_of(path, [2], 4) as texts:
        for stage in texts.chain:
            stage.program.set_reader("threads")
            stage.program.set_budget(stage.program.plan(0).least)
        for found, wanted in zip(life(texts), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        for stage in texts.chain:
            assert stage.program.streaming is not None
            assert stage.program.streaming.streamed > 0


def test_stages_within_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not have room for all the weights of either."""
    model = tiny_models.llama(n_layers=6, n_embd=512, n_ff=3072, type="Q8_0")
    path = model.write(tmp_path / "m.gguf")
    expected = whole(path)
    used = counters.resident()
    monkeypatch.setattr(counters, "resident", lambda: used)  # else other tests' memory counts
    budget = Budget(sum(used) + (4 + 30) * MIB)
    with stages_of(path, [3], 6, memory=budget, reader="threads") as texts:
        for found, wanted in zip(life(texts), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        done = [stage.program.streaming for stage in texts.chain]
        assert all(each and each.streamed and each.read for each in done), done


def test_only_its_own_tensors_are_read_and_budgeted(tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=4, separate_output=True)
    path = model.write(tmp_path / "m.gguf")
    outside = {"token_embd.weight", "output_norm.weight", "output.weight"}
    with Stage(path, range(1, 3)) as stage:
        names = {tensor.name for tensor in stage.program.weights}
        assert names == {n for n in stage.file if n.startswith(("blk.1.", "blk.2."))}
        one = stage.cache()
        stage.run([Part(one, np.zeros(32, np.int32))], np.zeros((32, 64), np.float32))
        held = one.nbytes
    with mmrt.Model(path) as all_of_it, all_of_it.sequence() as text:
        text.extend([0] * 32)
        assert held * 2 == text.nbytes  # two layers of four
    with Stage(path, range(0, 1)) as first, Stage(path, range(3, 4)) as last:
        assert outside & {t.name for t in first.program.weights} == {"token_embd.weight"}
        assert outside - {t.name for t in last.program.weights} == {"token_embd.weight"}


def test_a_budget_that_is_too_small_names_the_file(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "m.gguf")
    with pytest.raises(OutOfMemoryError, match=str(path)):
        Stage(path, range(0, 1), memory=1 << 20)


# ---- what is refused ----


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.llama(n_layers=3).write(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "layers", [range(0, 0), range(2, 1), range(0, 4), range(3, 4), range(-1, 2), range(0, 3, 2)]
)
def test_layers_that_are_not_there(layers: range, path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"layers: .* that .*m\.gguf has, 0:3"):
        Stage(path, layers)


def test_layers_that_are_no_range(path: Path) -> None:
    with pytest.raises(ArgumentError, match="layers: expected a range, found 'all'"):
        Stage(path, "all")  # type: ignore[arg-type]


def test_rows_of_another_shape(path: Path) -> None:
    ids = np.zeros(2, np.int32)
    with Stage(path, range(0, 1)) as first, Stage(path, range(1, 3)) as last:
        for rows in (None, np.zeros((1, 64), np.float32), np.zeros((2, 63), np.float32)):
            cache = last.cache()
            with pytest.raises(ArgumentError, match=r"rows: not of shape \(2, 64\)"):
                last.run([Part(cache, ids, 1)], rows)
            assert cache.length == 0
        with pytest.raises(ArgumentError, match=r"rows: not of shape"):
            first.run([Part(first.cache(), ids)], np.zeros((2, 64), np.float32))


def test_ids_that_the_first_stage_does_not_know(path: Path) -> None:
    with Stage(path, range(0, 1)) as first, pytest.raises(ArgumentError, match="id 300"):
        first.run([Part(first.cache(), np.array([300], np.int32))])


def test_a_stage_names_the_tensor_that_holds_nan(tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=3)
    model.tensors["blk.1.ffn_norm.weight"].data.view(np.float32)[0] = np.nan
    path = model.write(tmp_path / "m.gguf")
    with Stage(path, range(1, 2)) as stage:
        cache = stage.cache()
        with pytest.raises(FormatError, match=r"'blk\.1\.ffn_norm\.weight' holds NaN"):
            stage.run([Part(cache, np.zeros(1, np.int32))], np.ones((1, 64), np.float32))
        assert cache.length == 0


def test_unknown_tensors_of_its_own_layers_alone(tmp_path: Path) -> None:
    model = tiny_models.llama(n_layers=3)
    model.tensors["blk.1.mystery.weight"] = tiny_models.floats(np.random.default_rng(0), 8)
    path = model.write(tmp_path / "m.gguf")
    Stage(path, range(2, 3)).close()
    with pytest.raises(UnsupportedError, match=r"tensor blk\.1\.mystery\.weight"):
        Stage(path, range(0, 2))


def test_a_closed_stage(path: Path) -> None:
    stage = Stage(path, range(0, 1))
    assert repr(stage) == f"<Stage of {str(path)!r}, layers 0:1>"
    stage.close()
    stage.close()
    with pytest.raises(ArgumentError, match="the stage is closed"):
        stage.cache()
