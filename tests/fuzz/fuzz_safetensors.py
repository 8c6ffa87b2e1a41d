"""Fuzzes safetensors: headers and indices, changed as JSON and as bytes.

A file that is opened has tensors that lie within it and whose elements can be read, or are refused.
"""

import json
import struct
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
from fuzzing import Choices

import mmrt

TYPES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "C64": 8, "F8_E4M3": 1}
STRANGE = ["F4", "F6_E2M3", "f32", "", "U1", "F8_E8M0", "😀", "F32\0"]
FIELDS = ["dtype", "shape", "data_offsets", "__metadata__", "weight_map", "a", ""]

FOLDER = fuzzing.folder("/dev/shm")


def header(c: Choices, prefix: str = "") -> tuple[dict[str, Any], int]:
    """A sound header, and how many bytes its tensors take."""
    made: dict[str, Any] = {}
    end = 0
    for i in range(c.below(5)):
        dtype = c.pick(sorted(TYPES))
        shape = [c.below(4) for _ in range(c.below(4))]
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * TYPES[dtype]
        made[f"{prefix}{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    if c.chance(2):
        made["__metadata__"] = {"format": "pt", c.text(): c.text()}
    return made, end


def change(c: Choices, value: Any) -> Any:
    """`value` with something in it changed, wherever."""
    if isinstance(value, dict) and value and not c.chance(6):
        name = c.pick(list(value))
        match c.below(6):
            case 0:
                del value[name]
            case 1:
                value[c.pick([*FIELDS, c.text()])] = value[name]
            case _:
                value[name] = change(c, value[name])
        return value
    if isinstance(value, list) and value and not c.chance(6):
        at = c.below(len(value))
        value[at : at + 1] = [change(c, value[at])] * c.pick([1, 1, 1, 0, 2, 40])
        return value
    if isinstance(value, int):
        return c.pick([value + c.between(-2, 2), -value, c.number(), value * 2, c.value()])
    return c.pick([c.value(), c.text(), c.number(), c.pick(STRANGE)])


def as_json(c: Choices, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=c.chance(2)).encode(errors="surrogatepass")
    match c.below(12):
        case 0:
            return c.mutated(text)
        case 1:
            return text + b" " * c.below(20) + c.take(c.below(3))
        case 2:
            return text.replace(b"{", b"{" * c.pick([1, 2, 5000]), 1)
        case 3:
            return text[:-1] + b"," + text[1:]  # every key twice
        case 4:
            return text.replace(b"0", b"[" * c.pick([1, 3000]) + b"1" * c.pick([1, 30, 5000]), 1)
    return text


def file(c: Choices, path: Path, prefix: str = "") -> list[str]:
    """Writes one; the names of its tensors."""
    described, n = header(c, prefix)
    names = [name for name in described if name != "__metadata__"]
    for _ in range(c.pick([0, 1, 1, 2])):
        described = change(c, described)
    text = as_json(c, described)
    length = len(text) if not c.chance(10) else c.number() % (1 << 64)
    data = struct.pack("<Q", length) + text + bytes(max(0, n + c.pick([0] * 10 + [1, -1, 8])))
    path.write_bytes(c.mutated(data) if c.chance(10) else data)
    return names


def read(opened: mmrt.TensorFile) -> None:
    repr(opened)
    for name, tensor in opened.items():
        assert name == tensor.name and tensor.nbytes >= 0
        try:
            assert np.array(tensor).nbytes == tensor.nbytes  # a copy: views would keep it open
            tensor.verify()
        except mmrt.MmrtError:
            pass


def one(c: Choices) -> None:
    if not c.chance(4):
        file(c, FOLDER / "a.safetensors")
        with mmrt.open(FOLDER / "a.safetensors") as opened:
            read(opened)
        return
    places: dict[str, Any] = {}
    for shard in ("b1.safetensors", "b2.safetensors"):
        places |= dict.fromkeys(file(c, FOLDER / shard, shard), shard)
    index: Any = {"metadata": {"total_size": c.number()}, "weight_map": places}
    for _ in range(c.below(3)):
        index = change(c, index)
    path = FOLDER / "b.safetensors.index.json"
    path.write_bytes(as_json(c, index))
    with mmrt.open(path) as opened:
        read(opened)


FUZZER = fuzzing.Fuzzer("safetensors", one)

if __name__ == "__main__":
    FUZZER.main()
