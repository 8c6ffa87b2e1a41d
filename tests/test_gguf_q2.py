"""Q2_0 and PQ2_0 under one id: files that have either are told apart by the room of tensors."""

from pathlib import Path

import numpy as np
import pytest
from own_types import q2_0

import mmrt
from mmrt.errors import FormatError


def write(path: Path, group: int, widths: list[int], rows: int = 3) -> dict[str, np.ndarray]:
    """A file of tensors of this many elements a row, in groups of 64 or 128, all with id 42."""
    random = np.random.default_rng(1)
    header, data, right = b"", b"", {}
    for i, width in enumerate(widths):
        blocks = random.integers(0, 256, (rows * width // group, 2 + group // 4), np.uint8)
        blocks[:, :2] = np.array([0.5], np.float16).view(np.uint8)
        name = f"t{i}".encode()
        header += len(name).to_bytes(8, "little") + name + (2).to_bytes(4, "little")
        header += width.to_bytes(8, "little") + rows.to_bytes(8, "little")
        header += (42).to_bytes(4, "little") + len(data).to_bytes(8, "little")
        data += blocks.tobytes()
        data += bytes(-len(data) % 32) if i + 1 < len(widths) else b""
        right[name.decode()] = q2_0(blocks).reshape(rows, width)
    start = b"GGUF" + (3).to_bytes(4, "little") + len(widths).to_bytes(8, "little") + bytes(8)
    path.write_bytes(start + header + bytes(-len(start + header) % 32) + data)
    return right


@pytest.mark.parametrize("widths", [[128], [256, 128], [1024, 512, 2048]])
@pytest.mark.parametrize(("group", "type"), [(64, "Q2_0"), (128, "PQ2_0")])
def test_they_are_told_apart(tmp_path: Path, group: int, type: str, widths: list[int]) -> None:
    right = write(tmp_path / "m.gguf", group, widths)
    with mmrt.open(tmp_path / "m.gguf") as file:
        for name, values in right.items():
            assert file[name].type == type
            np.testing.assert_array_equal(file[name].dequantize(), values)
            x = np.ones(values.shape[1], np.float32)
            np.testing.assert_allclose(file[name] @ x, values @ x, atol=0.02 * values.shape[1])


def test_a_file_that_is_cut_short_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, 128, [1024, 1024])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="pass the end of the file"):
        mmrt.open(path)
