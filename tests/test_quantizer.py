"""Quantising: blocks against those of the reference quantisers, and whole files."""

import errno
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import command
import numpy as np
import pytest
import tiny_models
from gguf import GGUFReader
from hostile import make_gguf as make
from numpy.typing import NDArray

import mmrt
from mmrt.core.gguf import Metadata
from mmrt.core.kernels import Pool
from mmrt.core.quant import TYPES
from mmrt.errors import ArgumentError, FileError, FormatError, UnsupportedError
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.files.quantizer import QUANTIZABLE, SOURCES, Choice, choose, nearest, quantize

Array = NDArray[np.float32]


def write_matrices(path: Path, **matrices: NDArray[Any]) -> mmrt.TensorFile:
    types = {"float32": "F32", "float16": "F16"}
    entries = [Entry(name, types[a.dtype.name], a.shape) for name, a in matrices.items()]
    with write_gguf(path, {}, entries) as writer:
        for array in matrices.values():
            writer.write(array.tobytes())
    return mmrt.open(path)


def error(values: Array, blocks: NDArray[np.uint8], type: str) -> float:
    """Root mean square of what the blocks are off by, relative to that of the values."""
    found = mmrt.quant.dequantize(type, blocks.tobytes(), values.size)
    off = found.reshape(values.shape).astype(np.float64) - values
    return float(np.sqrt(np.square(off).mean() / np.square(values, dtype=np.float64).mean()))


# ---- blocks ----


def distributions() -> dict[str, Array]:
    random = np.random.default_rng(1)
    shape = (64, 512)
    found = {
        "normal": random.normal(0, 0.02, shape),
        "laplace": random.laplace(0, 0.02, shape),
        "heavy tails": random.standard_t(3, shape) * 0.02,
        "off centre": random.normal(0.03, 0.02, shape),
        "ternary": random.integers(-1, 2, shape) * random.uniform(0.5, 2, (64, 1)),
        "few not zero": random.normal(0, 1, shape) * (random.uniform(0, 1, shape) < 0.05),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def assert_no_worse_than_reference(matrices: dict[str, Array], folder: Path, type: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    with write_matrices(folder / "matrices.gguf", **matrices) as file:
        for name, values in matrices.items():
            reference = np.asarray(libgguf.quantize_rows(values, TYPES[type].id)).view(np.uint8)
            ours, theirs = (
                error(values, file[name].quantize(type), type),
                error(values, reference, type),
            )
            print(f"{type} {name}: {ours:.5f}, reference {theirs:.5f}")
            # Rounding a scale to binary16 costs up to 2^-12, whoever does it.
            assert ours <= max(theirs * 1.0005, 2**-12), name


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_no_worse_than_the_reference(type: str, tmp_path: Path) -> None:
    assert_no_worse_than_reference(distributions(), tmp_path, type)


@pytest.mark.slow
@pytest.mark.parametrize("type", QUANTIZABLE)
def test_no_worse_on_real_weights(type: str, real_path: Path, tmp_path: Path) -> None:
    """On a few rows of each kind of matrix, cut to whole blocks of 256."""
    with mmrt.open(real_path) as file:
        names = [n for n in file if "blk.3." in n and len(file[n].shape) == 2] + [
            "token_embd.weight"
        ]
        weights = {name: file[name].dequantize()[100:164] for name in names}
    cut = {
        name: np.ascontiguousarray(a[:, : a.shape[1] // 256 * 256]) for name, a in weights.items()
    }
    assert_no_worse_than_reference(cut, tmp_path, type)


# What normal values lose, by type: a bound that does not need the reference.
LOSSES = {
    **{"Q4_0": 0.082, "Q4_1": 0.070, "Q5_0": 0.041, "Q5_1": 0.034, "Q8_0": 0.0048},
    **{"Q2_K": 0.261, "Q3_K": 0.145, "Q4_K": 0.0705, "Q5_K": 0.035, "Q6_K": 0.0167},
    **{"IQ4_NL": 0.074, "TQ2_0": 0.44},
}


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_loss_of_normal_values(type: str, tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(0, 0.02, (200, 2048)).astype(np.float32)
    with write_matrices(tmp_path / "file.gguf", t=values) as file:
        assert error(values, file["t"].quantize(type), type) < LOSSES[type]


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_any_source_and_any_threads_give_the_same_bytes(type: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    halves = random.integers(-127, 128, (33, 512)).astype(np.float16) / 64
    halves[:, ::32] = 127 / 64  # so that Q8_0 holds them exactly
    eighths = tiny_models.blocks_of("Q8_0", halves.astype(np.float32))
    exact = tiny_models.dequantize(eighths)
    brains = (exact.view(np.uint32) >> 16 << 16).view(np.float32)
    sources: dict[str, NDArray[Any]] = {"F32": exact, "F16": exact.astype(np.float16)}
    assert np.array_equal(sources["F16"].astype(np.float32), exact)
    entries = [Entry(name, name, (33, 512)) for name in (*sources, "Q8_0", "BF16")]
    with write_gguf(tmp_path / "file.gguf", {}, [*entries, Entry("B", "F32", (33, 512))]) as writer:
        for array in sources.values():
            writer.write(array.tobytes())
        writer.write(eighths.data.tobytes())
        writer.write((brains.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        writer.write(brains.tobytes())
    with mmrt.open(tmp_path / "file.gguf") as file:
        first = file["F32"].quantize(type, pool=Pool(1))
        for name in ("F32", "F16", "Q8_0"):
            assert np.array_equal(first, file[name].quantize(type, pool=Pool(3)))
        assert np.array_equal(file["B"].quantize(type), file["BF16"].quantize(type))
        assert np.array_equal(first[5:12], file["F32"].quantize(type, 5, 7))
        assert file["F32"].quantize(type, 33).shape == (0, first.shape[1])


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_values_that_have_no_place(type: str, tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf, 65536):
        values = np.ones((3, 3, 512), np.float32)
        values[1, 2, 500] = value
        with write_matrices(tmp_path / "file.gguf", t=values) as file:
            with pytest.raises(FormatError, match=r"tensor t: -?[a-z0-9]+ in row 5, column 500"):
                file["t"].quantize(type, 1)
            assert file["t"].quantize(type, 0, 5).shape[0] == 5


def test_what_tensors_refuse(tmp_path: Path) -> None:
    file = write_matrices(tmp_path / "file.gguf", t=np.ones((3, 96), np.float32))
    with file:
        for type, words in {"Q9": "no type 'Q9'", "Q4_K": "not whole blocks of Q4_K"}.items():
            with pytest.raises(ArgumentError, match=words):
                file["t"].quantize(type)
        for type in ("F16", "IQ2_XS", "Q8_K"):
            with pytest.raises(UnsupportedError, match=f"{type} cannot be written"):
                file["t"].quantize(type)
        for rows in ((-1, 1), (0, 4), (4, 0), (1, 3), (0, -1)):
            with pytest.raises(ArgumentError, match="rows"):
                file["t"].quantize("Q4_0", *rows)


# ---- which tensor gets which type ----


def chosen(path: Path, type: str) -> dict[str, Choice]:
    with mmrt.open(path) as file:
        return {choice.name: choice for choice in choose(file, type)}


def test_vectors_and_small_matrices_keep_their_type(tmp_path: Path) -> None:
    model = tiny_models.llama(n_embd=256, n_ff=256, head_dim=64, separate_output=True)
    random = np.random.default_rng(0)
    for name in ("blk.0.ffn_gate_inp.weight", "blk.0.odd_norm.weight", "blk.0.matrix.bias"):
        model.tensors[name] = tiny_models.random_blocks(random, "F32", 8, 256, 1.0)
    model.tensors["blk.0.ffn_up_exps.weight"] = tiny_models.Blocks(
        "F32", random.normal(size=(4, 8, 256)).astype(np.float32).view(np.uint8)
    )
    found = chosen(model.write(tmp_path / "model.gguf"), "Q4_K")
    kept = {name for name, choice in found.items() if choice.target == "F32"}
    assert kept == {
        name for name in found if "norm" in name or "gate_inp" in name or "bias" in name
    }
    assert found["blk.0.ffn_up_exps.weight"].target == "Q4_K"
    assert found["token_embd.weight"].target == "Q4_K"
    assert found["output.weight"][3:] == ("Q6_K", "it makes the logits")
    assert not any(c.reason for c in found.values() if c.name != "output.weight")


@pytest.mark.parametrize(
    ("type", "matrix", "output"),
    [
        ("Q4_0", "Q4_0", "Q6_K"),
        ("Q8_0", "Q8_0", "Q8_0"),
        ("Q6_K", "Q6_K", "Q6_K"),
        ("TQ2_0", "TQ2_0", "Q6_K"),
    ],
)
def test_an_embedding_that_is_the_output_too(
    type: str, matrix: str, output: str, tmp_path: Path
) -> None:
    path = tiny_models.llama(n_embd=256, n_ff=256, head_dim=64).write(tmp_path / "model.gguf")
    found = chosen(path, type)
    assert found["token_embd.weight"].target == output
    assert found["blk.0.attn_q.weight"].target == matrix


@pytest.mark.parametrize(
    ("type", "fallback"),
    [("Q2_K", "IQ4_NL"), ("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0"), ("Q4_0", "Q4_0")],
)
def test_rows_that_are_not_whole_blocks(type: str, fallback: str, tmp_path: Path) -> None:
    path = tiny_models.llama(n_embd=288, n_ff=90, head_dim=64).write(tmp_path / "model.gguf")
    found = chosen(path, type)
    assert found["blk.0.attn_q.weight"].target == fallback
    assert found["token_embd.weight"].target == "Q8_0"
    assert found["blk.0.attn_output.weight"].target == type  # rows of 256
    assert found["blk.1.ffn_down.weight"][3:] == ("F32", "rows of 90 are not whole blocks of 32")
    if type != "Q4_0":
        reason = "rows of 288 are not whole blocks of 256"
        assert found["blk.0.attn_q.weight"].reason == reason


def test_tensors_without_elements_or_dimensions_are_copied(tmp_path: Path) -> None:
    entries = [Entry("mark", "F32", (0,)), Entry("a.weight", "F32", (2, 32)), Entry("n", "F32", ())]
    with write_gguf(tmp_path / "in", {}, entries) as writer:
        writer.write(np.ones(64, np.float32).tobytes())
        writer.write(np.float32(7).tobytes())
    quantize(tmp_path / "in", tmp_path / "out", "Q8_0")
    with mmrt.open(tmp_path / "out") as f:
        found = {name: (t.type, t.shape) for name, t in f.items()}
        assert found == {"mark": ("F32", (0,)), "a.weight": ("Q8_0", (2, 32)), "n": ("F32", ())}
        assert f["n"].dequantize() == 7
        assert np.allclose(f["a.weight"].dequantize(), 1, rtol=1e-3)


def test_a_type_that_is_unknown_cannot_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes(make.gguf((), (make.tensor("odd", (32,), 157),), 64))
    with pytest.raises(UnsupportedError, match=r"in\.gguf: tensor 'odd': .* 157"):
        quantize(path, tmp_path / "out", "Q8_0")
    assert not (tmp_path / "out").exists()


def test_matrices_that_have_lost_too_much(tmp_path: Path) -> None:
    path = tiny_models.llama(types={"attn_q": "Q5_1"}).write(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.attn_q\.weight' is Q5_1 already"):
        chosen(path, "Q4_0")
    assert chosen(path, "Q5_1")["blk.0.attn_q.weight"].target == "Q5_1"


# ---- whole files ----


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shape = {"n_embd": 256, "n_ff": 512, "head_dim": 64, "type": "F16"}
    folder = tmp_path / "in"
    folder.mkdir()
    return tiny_models.llama(**shape).write(folder / "model.gguf")


@pytest.mark.parametrize("type", QUANTIZABLE)
def test_a_model_quantised(type: str, source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = quantize(
        source, tmp_path / "out.gguf", type, progress=lambda *call: calls.append(call)
    )
    with mmrt.open(source) as old, mmrt.open(tmp_path / "out.gguf") as new:
        assert list(new) == list(old)
        assert {c.name: c.target for c in result.choices} == {t.name: t.type for t in new.values()}
        assert (result.size_before, result.size_after) == (old.nbytes, new.nbytes)
        assert calls == sorted(calls) and calls[-1] == (old.nbytes, old.nbytes)
        for key in old.metadata:
            assert cast(Metadata, new.metadata).raw(key) == cast(Metadata, old.metadata).raw(key)
        assert set(new.metadata) - set(old.metadata) == {
            *("general.quantization_version", "general.file_type")
        }
        for name, tensor in new.items():
            if tensor.type == old[name].type:
                assert np.array_equal(tensor.blocks(), old[name].blocks())
            else:
                assert np.array_equal(tensor.blocks(), old[name].quantize(tensor.type))
    assert len(GGUFReader(tmp_path / "out.gguf").tensors) == len(result.choices)
    with mmrt.Model(source) as old_model, mmrt.Model(tmp_path / "out.gguf") as new_model:
        ids = list(range(40))
        before, after = old_model.logits(ids), new_model.logits(ids)
    loss = np.sqrt(np.square(before - after).mean() / np.square(before).mean())
    assert loss < 8 * LOSSES[type]


@pytest.mark.parametrize("type", SOURCES)
def test_from_every_source(type: str, tmp_path: Path) -> None:
    model = tiny_models.llama(type=type, n_embd=64, n_ff=96)
    result = quantize(model.write(tmp_path / "in.gguf"), tmp_path / "out.gguf", "Q8_0", threads=1)
    assert {c.target for c in result.choices} == {"F32", "Q8_0"}
    assert 0 < result.size_after <= result.size_before


def test_a_model_in_parts(tmp_path: Path) -> None:
    model = tiny_models.llama(n_embd=64, n_ff=64)
    names = sorted(model.tensors)
    for i, part in enumerate((names[:7], names[7:])):
        split = {"split.no": i, "split.count": 2, "split.tensors.count": len(names)}
        metadata = {**(model.metadata if not i else {}), **split}
        tensors = {name: model.tensors[name] for name in part}
        whole = tiny_models.TinyModel(metadata, tensors)
        whole.write(tmp_path / f"in-0000{i + 1}-of-00002.gguf")
    quantize(tmp_path / "in-00002-of-00002.gguf", tmp_path / "out.gguf", "Q5_1")
    with mmrt.open(tmp_path / "out.gguf") as file:
        assert sorted(file) == names and len(file.paths) == 1
        assert not any(key.startswith("split.") for key in file.metadata)
        assert file.metadata["general.architecture"] == "llama"
    with pytest.raises(ArgumentError, match="must stay"):
        quantize(tmp_path / "in-00001-of-00002.gguf", tmp_path / "in-00002-of-00002.gguf", "Q4_0")


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_the_input_is_not_overwritten(link: str | None, source: Path) -> None:
    target = source
    if link:
        target = source.with_name("link.gguf")
        getattr(target, link)(source)
    before, names = source.read_bytes(), listed(source.parent)
    command.call("quantize", source, target, "Q4_0").assert_refused(1, target.name, "must stay")
    assert source.read_bytes() == before and listed(source.parent) == names


def test_a_failure_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def sometimes_full(descriptor: int, data: memoryview) -> int:
        nonlocal writes
        writes += 1
        if writes > 10:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data[:1000])

    real = os.write
    monkeypatch.setattr(os, "write", sometimes_full)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileError, match=r"out\.gguf: .*No space left"):
        quantize(source, tmp_path / "out" / "out.gguf", "Q4_0")
    assert listed(tmp_path / "out") == []

    def interrupted(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out" / "out.gguf", "Q4_0", progress=interrupted)
    assert listed(tmp_path / "out") == []


def test_a_weight_that_is_nan_leaves_nothing(tmp_path: Path) -> None:
    model = tiny_models.llama(n_embd=256, n_ff=256)
    matrix = model.tensors["blk.1.ffn_up.weight"].data.view(np.float32)
    matrix[17, 3] = np.nan
    path = model.write(tmp_path / "model.gguf")
    ended = command.call("quantize", path, tmp_path / "out.gguf", "Q4_K")
    ended.assert_refused(1, "blk.1.ffn_up.weight", "nan in row 17, column 3")
    assert listed(tmp_path) == ["model.gguf"]


@pytest.fixture
def zeros(tmp_path: Path) -> Path:
    """A large matrix that takes no room on most disks, since all of it is zeros."""
    path = tmp_path / "zeros.gguf"
    entries = [Entry(f"{i}.weight", "F32", (8192, 4096)) for i in range(2)]
    with write_gguf(path, {}, entries) as writer:
        for _ in range(2 * 128):
            writer.write(bytes(1 << 20))
    return path


def test_memory_does_not_grow_with_the_matrices(zeros: Path, tmp_path: Path) -> None:
    def resident() -> int:
        """With pages of the mapped file, which are twice 128 MiB in all."""
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    start, peak = resident(), 0

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, resident() - start)

    quantize(zeros, tmp_path / "out.gguf", "Q8_0", threads=2, progress=watch)
    assert peak < 32 << 20


def writes_into(process: "subprocess.Popen[str]", folder: Path) -> bool:
    """Whether the process has written to a file there, beyond its header."""
    about = Path(f"/proc/{process.pid}")
    with suppress(OSError):
        for link in (about / "fd").iterdir():
            if os.readlink(link).startswith(f"{folder}/"):
                return int((about / "fdinfo" / link.name).read_text().split()[1]) > 100_000
    return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing(
    zeros: Path, tmp_path: Path, end: signal.Signals
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    process = command.start("quantize", zeros, folder / "out.gguf", "TQ2_0", stderr=-1, stdout=-1)
    while not writes_into(process, folder) and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("", "")
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert listed(folder) == []


def test_where_no_file_is_without_a_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FUSE and NFS."""

    def unknown(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, mode, **options)

    real = os.open
    out = tmp_path / "out"
    out.mkdir()
    quantize(source, out / "a.gguf", "Q8_0")
    monkeypatch.setattr(os, "open", unknown)
    quantize(source, out / "b.gguf", "Q8_0")
    assert listed(out) == ["a.gguf", "b.gguf"]
    assert (out / "a.gguf").read_bytes() == (out / "b.gguf").read_bytes()

    def fail(done: int, total: int) -> None:
        assert any(name.endswith(".part") for name in listed(out))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, out / "b.gguf", "Q4_0", progress=fail)
    assert listed(out) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("Q4_K_M", "Q4_K"), ("q5_k_s", "Q5_K"), ("Q3_K_L", "Q3_K"), ("IQ4_XS", "IQ4_NL"),
        ("IQ2_XXS", "Q2_K"), ("MXFP4", "Q4_K"), ("Q8_K", "Q8_0"), ("Q2_K_S", "Q2_K"), ("F16", None),
        ("FP16", None), ("INT8", "Q8_0"), ("int4", "Q4_K"), ("TQ1_0", "TQ2_0"), ("IQ3_M", "Q3_K"),
    ],
)  # fmt: skip
def test_names_of_mixtures_lead_to_a_type(asked: str, near: str | None) -> None:
    assert nearest(asked) == near
    ended = command.call("quantize", "in", "out", asked)
    ended.assert_refused(2, f"not '{asked.upper()}'" + (f"; {near} comes nearest" if near else " "))


# ---- the command ----


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    path = tiny_models.llama(n_embd=288, n_ff=256, head_dim=64).write(tmp_path / "model.gguf")
    ended = command.call("quantize", path, tmp_path / "out.gguf", "q4_k", "-t", 1)
    assert ended.status == 0 and ended.err == ""
    reason = r"rows of 288 are not whole blocks of 256: "
    assert re.search(rf"F32 +Q5_0 +10 +{reason}blk\.0\.attn_q\.weight, \.\.\.\n", ended.out)
    assert re.search(rf"F32 +Q8_0 +1 +{reason}token_embd\.weight\n", ended.out)
    assert re.search(r"F32 +Q4_K +4\n", ended.out)
    assert re.search(r"MiB became .* \(\d\d%\) in \d", ended.out)


def test_what_the_command_refuses(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command.call("quantize", source, out, "Q4").assert_refused(2, "Q4_0, Q4_1", "'Q4'")
    command.call("quantize", source, out).assert_refused(2, "TYPE")
    command.call("quantize", source, out, "Q4_0", "-t", 0).assert_refused(2, "threads")
    command.call("quantize", tmp_path / "no.gguf", out, "Q4_0").assert_refused(1, "no.gguf")
    command.call("quantize", source, tmp_path / "no" / "o", "Q4_0").assert_refused(1, "No such")
    text = tmp_path / "text.gguf"
    text.write_text("text")
    command.call("quantize", text, out, "Q4_0").assert_refused(1, "text.gguf")
    assert not out.exists()
