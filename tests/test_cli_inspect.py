"""`mmrt inspect`."""

import json
from pathlib import Path

from command import call

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
