"""Fuzzes .npy and .npz: headers made and changed, archives changed as bytes.

What NumPy itself reads from a file without pickles, mmrt reads the same, or refuses.
"""

import io
import struct
import warnings
import zipfile
from pathlib import Path

import fuzzing
import numpy as np
from fuzz_safetensors import read
from fuzzing import Choices

import mmrt

FOLDER = fuzzing.folder("/dev/shm")
DESCRS = [
    "<f4",
    "<f8",
    "<i2",
    "|b1",
    "|u1",
    "<c8",
    ">f4",
    "|O",
    "<U3",
    "<M8[s]",
    "|V3",
    "=i4",
    "f4",
]
DESCRS += ["", "<f16", "<f0", "|S0", "<f-4", "<i99999999999", "i", "<f4\n", "O8"]


def header(c: Choices) -> bytes:
    descr = repr(c.pick(DESCRS[:6] if c.chance(2) else [*DESCRS, c.text()]))
    if c.chance(8):
        descr = c.pick(["[('a', '<f4')]", "('<f4', (2,))", "None", "1", "{}", repr(c.value())])
    sizes = [c.below(4) if not c.chance(8) else c.number() for _ in range(c.below(4))]
    shape = repr(tuple(sizes)) if not c.chance(8) else c.pick(["3", "[2]", "(2, 'a')", "(True,)"])
    order = c.pick(["False", "False", "True", "0", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    match c.below(12):
        case 0:
            text = text.replace(",", c.pick([", 'x': 1,", ",,", "", ", **{},", " or "]), 1)
        case 1:
            text = "(" * c.pick([1, 300, 9000]) + text
        case 2:
            text = text.replace("'", c.pick(['"', "", "\\'", "'''"]))
        case 3:
            text = c.mutated(text.encode()).decode("latin1")
        case 4:
            text = text.replace("(", "(" + c.pick(["-", "+", "0x", "1_", "0o", "9" * 5000]), 1)
    return text.encode("latin1", "replace")


def array(c: Choices) -> bytes:
    version = c.pick([(1, 0), (1, 0), (2, 0), (3, 0), (0, 1), (4, 0), (1, 1)])
    text = header(c)
    size = "<H" if version[0] == 1 else "<I"
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    length = len(text) + (c.between(-70, 70) if c.chance(10) else 0)
    length = max(0, min(length, 65535))
    data = b"\x93NUMPY" + bytes(version) + struct.pack(size, length) + text
    data += c.take(c.pick([0, 4, 16, 64, 256]))
    return c.mutated(data) if c.chance(6) else data


def archive(c: Choices) -> bytes:
    room = io.BytesIO()
    method = c.pick([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
    with zipfile.ZipFile(room, "w", method) as packed:
        for i in range(c.below(4)):
            name = c.pick(
                [f"{i}.npy", f"{i}.npy", f"{i}.npy", "0.npy", "../a.npy", c.text() or "a"]
            )
            info = zipfile.ZipInfo(name)
            info.extra = c.take(c.pick([0, 0, 4, 20]))
            packed.writestr(info, array(c), method)
        packed.comment = c.take(c.pick([0, 0, 22]))
    data = room.getvalue()
    return c.mutated(data) if c.chance(2) else data


def agrees(path: Path, opened: mmrt.TensorFile) -> None:
    """That NumPy, where it reads a file, reads what mmrt does."""
    try:
        theirs = np.load(path, allow_pickle=False)
        there = {path.stem: theirs} if isinstance(theirs, np.ndarray) else dict(theirs)
    except Exception:
        return
    for name, tensor in opened.items():
        try:
            ours = np.array(tensor)
        except mmrt.MmrtError:
            continue
        if name in there:
            assert ours.shape == there[name].shape, name
            assert ours.tobytes() == there[name].tobytes(), name


def one(c: Choices) -> None:
    packed = c.chance(2)
    path = FOLDER / ("a.npz" if packed else "a.npy")
    path.write_bytes(archive(c) if packed else array(c))
    with mmrt.open(path) as opened:
        read(opened)
        agrees(path, opened)


FUZZER = fuzzing.Fuzzer("npy", one)

if __name__ == "__main__":
    FUZZER.main()
