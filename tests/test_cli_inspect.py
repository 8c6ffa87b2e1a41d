"""`mmrt inspect`."""

import json
import os
import pty
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import await_text, call, start
from hostile import make_gguf as make
from tiny_models import floats, llama

import mmrt


def test_inspect_tells_the_main_things(smollm2_path: Path, gemma3_path: Path) -> None:
    llama = call("inspect", smollm2_path).out
    lines = [line.split() for line in llama.splitlines()]
    assert ["architecture", "llama"] in lines
    assert ["Q4_1", "210", "106168320", "63.28", "MiB", "68.7%"] in lines
    assert ["tokenizer.ggml.tokens", "49152", "values:"] in [line[:3] for line in lines]
    assert "token_embd.weight" not in llama
    gemma = call("inspect", gemma3_path, "--tensors").out
    assert "262144 values" in gemma
    assert "blk.17.ffn_up.weight" in gemma


def test_inspect_as_json(gemma3_path: Path) -> None:
    report = json.loads(call("inspect", gemma3_path, "--json").out)
    assert report["architecture"] == "gemma3"
    assert report["context_length"] == 32768
    assert report["types"]["Q5_0"]["tensors"] == 81
    assert report["tokenizer"]["tokens"] == 262144
    assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == 262144
    assert "tensors" not in report
    tensors = json.loads(call("inspect", gemma3_path, "--json", "--tensors").out)["tensors"]
    with mmrt.open(gemma3_path) as file:
        found = {t["name"]: (tuple(t["shape"]), t["type"], t["nbytes"]) for t in tensors}
        assert found == {name: (t.shape, t.type, t.nbytes) for name, t in file.items()}


def test_inspect_prints_one_value_whole(smollm2_path: Path) -> None:
    assert call("inspect", smollm2_path, "--metadata", "llama.block_count").out == "30\n"
    key = "tokenizer.ggml.tokens"
    assert call("inspect", smollm2_path, "--metadata", key).out.count("\n") == 49152
    assert len(json.loads(call("inspect", smollm2_path, "--json", "--metadata", key).out)) == 49152


def test_inspect_shows_files_of_other_formats(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    values: dict[str, Any] = {"w": np.ones((3, 4), np.float16), "empty": np.zeros((0, 2), np.uint8)}
    save(values, tmp_path / "m.safetensors", metadata={"format": "np"})
    index = {"metadata": {"total_size": 24}, "weight_map": dict.fromkeys(values, "m.safetensors")}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    np.savez(tmp_path / "m.npz", **values)
    np.save(tmp_path / "w.npy", values["w"])

    tensors = {"w": ["w", "F16", "3x4", "24", "bytes"], "empty": ["empty", "U8", "0x2", "0"]}
    for name, format, n_tensors, metadata in (
        ("m.safetensors", "safetensors", 2, ["format", "np"]),
        ("m.safetensors.index.json", "safetensors", 2, ["total_size", "24"]),
        ("m.npz", "npz", 2, None),
        ("w.npy", "npy", 1, None),
    ):
        ended = call("inspect", "--tensors", tmp_path / name)
        assert (ended.status, ended.err) == (0, "")
        lines = [line.split() for line in ended.out.splitlines()]
        assert ["format", format] in lines and ["tensor", "count", str(n_tensors)] in lines
        for expected in list(tensors.values())[:n_tensors]:
            assert any(line[: len(expected)] == expected for line in lines)
        assert metadata is None or metadata in lines
        assert (["key", "value"] in lines) == (metadata is not None)
        report = json.loads(call("inspect", "--json", "--tensors", tmp_path / name).out)
        assert (report["format"], report["tensor_count"]) == (format, n_tensors)

    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "empty.npy", values["empty"])
    for name in ("none.npz", "empty.npy"):
        assert call("inspect", tmp_path / name).status == 0


def test_inspect_refuses_broken_files_in_one_line(tmp_path: Path) -> None:
    for name, data in (
        ("m.safetensors", b"\x03\0\0\0\0\0\0\0{\x1b}"),
        ("m.safetensors.index.json", b"{"),
        ("m.npz", b"PK\3\4"),
        ("w.npy", b"\x93NUMPY\1\0\6\0{'\\d'}"),
    ):
        (tmp_path / name).write_bytes(data)
        call("inspect", tmp_path / name).assert_refused(1, name)


def test_inspect_shows_no_control_characters(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "hostile.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("\x1b[2J\x07red\nalert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = call("inspect", path).out
    assert r"\x1b[2J\x07red\nalert" in out
    assert "\x1b" not in out


STEERING = "\x1b[2J\x07 \x9b2J \u202eevil \x7f ☃\n\U000e0041"


def no_constant(word: str) -> Any:
    raise AssertionError(f"JSON has no {word}")


def test_json_for_any_reader(tmp_path: Path) -> None:
    """NaN and infinities, which JSON lacks, are null; what steers a terminal is escaped."""
    path = tmp_path / "odd.gguf"
    numbers = struct.pack("<3f", float("nan"), float("-inf"), 0.5)
    entries = (
        make.entry("one", make.FLOAT64, struct.pack("<d", float("inf"))),
        make.entry("three", make.ARRAY, make.array(make.FLOAT32, 3, numbers)),
        make.entry("nine", make.ARRAY, make.array(make.FLOAT32, 9, 3 * numbers)),
        make.entry("nested", make.ARRAY, make.within(1, make.array(make.FLOAT32, 9, 3 * numbers))),
        make.entry("text", make.STRING, make.string(STEERING)),
    )
    path.write_bytes(make.gguf(entries, (make.tensor(STEERING, (8,)),), 32))
    out = call("inspect", path, "--json", "--tensors").out
    assert all(c.isprintable() or c == "\n" for c in out) and "☃" in out
    report = json.loads(out, parse_constant=no_constant)
    assert report["tensors"][0]["name"] == report["metadata"]["text"] == STEERING
    assert report["metadata"]["one"] is None and report["metadata"]["three"] == [None, None, 0.5]
    first = {"length": 9, "first": [None, None, 0.5, None, None, 0.5, None, None]}
    assert report["metadata"]["nine"] == first and report["metadata"]["nested"] == [first]
    one = call("inspect", path, "--json", "--metadata", "nine").out
    assert json.loads(one, parse_constant=no_constant) == 3 * [None, None, 0.5]
    out = call("residency", path, "--json").out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert json.loads(out)["tensors"][0]["name"] == STEERING


def test_a_value_is_tamed_on_a_terminal_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(make.gguf((make.entry("t", make.STRING, make.string(STEERING)),)))
    assert call("inspect", path, "--metadata", "t").out == STEERING + "\n"
    ours, theirs = pty.openpty()
    process = start("inspect", path, "--metadata", "t", stdout=theirs)
    assert process.wait(60) == 0
    shown = await_text(ours, b"U000e0041").decode()
    os.close(theirs)
    os.close(ours)
    assert r"\x1b[2J\x07 \x9b2J \u202eevil \x7f ☃" in shown and "\x1b" not in shown


def test_only_what_is_shown_of_a_list_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    head = make.gguf((make.entry("long", make.ARRAY, make.array(make.UINT8, 64 << 20, b"")),))
    with path.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + (64 << 20))
    tracemalloc.start()
    try:
        assert "67108864 values: 0, 0, 0" in call("inspect", path).out
        assert '"length": 67108864' in call("inspect", path, "--json").out
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_errors_and_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x\x1b[2J\u202e.gguf"
    path.write_bytes(b"GGUF")
    ended = call("inspect", path)
    ended.assert_refused(1, r"x\x1b[2J\u202e.gguf")
    assert ended.err[:-1].isprintable()
    ended = call("inspect", tmp_path / "none", "--\x9bevil")
    assert ended.status == 2 and ended.err[:-1].isprintable()


def runs(path: Path) -> str:
    """What the table says of it."""
    lines = call("inspect", path).out.splitlines()
    return next(line.split(maxsplit=1)[1] for line in lines if line.startswith("runs "))


def test_inspect_says_whether_a_model_runs_and_what_is_missing(tmp_path: Path) -> None:
    def write(name: str, **changes: Any) -> Path:
        model = llama()
        model.metadata |= changes
        return model.write(tmp_path / f"{name}.gguf")

    sound = write("sound")
    assert runs(sound) == "yes"
    report = json.loads(call("inspect", sound, "--json").out)
    assert (report["runs"], report["missing"]) == (True, [])

    gpt5 = {"general.architecture": "gpt5"}
    odd = {"tokenizer.ggml.pre": "odd"}
    soft = {"llama.attention.softness": 2.0}
    for changes, missing in (
        (gpt5, ["general.architecture is 'gpt5'"]),
        (odd, ["tokenizer.ggml.pre: unknown way of cutting words 'odd'"]),
        (soft, ["llama.attention.softness: 2.0"]),
        (gpt5 | odd, ["general.architecture is 'gpt5'", "tokenizer.ggml.pre: unknown way"]),
    ):
        path = write("unsound", **changes)
        said = runs(path)
        assert said.startswith(f"no: {missing[0]}")
        assert all(part in said for part in missing)
        report = json.loads(call("inspect", path, "--json").out)
        assert report["runs"] is False and len(report["missing"]) == len(missing)

    model = llama()
    model.tensors["blk.0.attn_softener.weight"] = floats(np.random.default_rng(0), 64)
    assert runs(model.write(tmp_path / "t.gguf")).startswith(
        "no: tensor blk.0.attn_softener.weight"
    )
    np.save(tmp_path / "w.npy", np.ones(3, np.float32))
    assert runs(tmp_path / "w.npy") == "no: models run from GGUF files, and this is npy"


def test_what_inspect_misses_is_what_a_model_says(tmp_path: Path) -> None:
    model = llama()
    model.metadata["llama.attention.softness"] = 2.0
    path = model.write(tmp_path / "m.gguf")
    with pytest.raises(mmrt.UnsupportedError) as refused:
        mmrt.Model(path)
    with mmrt.open(path) as file:
        assert [f"{path}: {reason}" for reason in mmrt.obstacles(file)] == [str(refused.value)]


@pytest.mark.parametrize("value", [5, "ab", 0.5, True])
def test_inspect_of_a_vocabulary_that_is_no_list(tmp_path: Path, value: Any) -> None:
    model = llama()
    model.metadata |= {"tokenizer.ggml.tokens": value, "tokenizer.chat_template.rag": "{{ x }}"}
    path = model.write(tmp_path / "m.gguf")
    assert runs(path).startswith("no: tokenizer.ggml.tokens: expected a list, found ")
    report = json.loads(call("inspect", path, "--json").out)["tokenizer"]
    assert report == {
        "model": "gpt2", "pre": "gpt-2", "tokens": None, "chat_template": True,
        "chat_templates": ["rag"],
    }  # fmt: skip


def test_inspect_of_a_type_that_is_unknown(tmp_path: Path) -> None:
    path = llama().write(tmp_path / "m.gguf")
    data = path.read_bytes()
    # The type stands behind the name, the count of dimensions and the dimensions.
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    path.write_bytes(data[:at] + struct.pack("<I", 144) + data[at + 4 :])
    assert "of ik_llama.cpp" in runs(path) and "blk.0.attn_q.weight" in runs(path)
