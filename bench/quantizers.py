"""mmrt's quantisers beside the reference ones: `python -m bench.quantizers MODEL.gguf ...`.

For each type: what is lost of a sample of the model's matrices, as the root mean square of the
errors relative to that of the weights, and how fast one thread is. The reference is `libgguf`,
which binds the quantisers of ggml (`pip install libgguf`). The two take turns.
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import libgguf
import numpy as np
from numpy.typing import NDArray

import mmrt
from mmrt.core.kernels import Pool
from mmrt.core.quant import TYPES, dequantize
from mmrt.files.gguf_writer import Entry, write_gguf
from mmrt.files.quantizer import QUANTIZABLE

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Losses are relative; speeds in millions of weights a second, of one thread."""

    model: str
    type: str
    loss: float
    reference_loss: float
    speed: float
    reference_speed: float


def sample(path: str, rows_of_each: int) -> Array:
    """Rows of every matrix, cut to whole blocks of 256, as lines of 256."""
    random = np.random.default_rng(0)
    parts = []
    with mmrt.open(path) as file:
        for tensor in file.values():
            if len(tensor.shape) == 2:
                weights = tensor.dequantize()
                weights = weights[:, : weights.shape[1] // 256 * 256]
                n_rows = min(rows_of_each, len(weights))
                parts.append(weights[random.choice(len(weights), n_rows, replace=False)])
    return np.concatenate([part.reshape(-1, 256) for part in parts])


def loss(weights: Array, blocks: NDArray[np.uint8], type: str) -> float:
    off = dequantize(type, blocks.tobytes(), weights.size).reshape(weights.shape) - weights
    squares = (np.square(array, dtype=np.float64).sum() for array in (off, weights))
    return float(np.sqrt(next(squares) / next(squares)))


def compare(path: str, rows_of_each: int) -> list[Row]:
    weights = sample(path, rows_of_each)
    rows, pool = [], Pool(1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "sample.gguf"
        with write_gguf(copy, {}, [Entry("sample", "F32", weights.shape)]) as writer:
            writer.write(weights.tobytes())
        with mmrt.open(copy) as file:
            file["sample"].quantize("Q8_0", pool=pool)  # reads it in
            for type in QUANTIZABLE:
                start = time.perf_counter()
                ours = file["sample"].quantize(type, pool=pool)
                middle = time.perf_counter()
                reference = np.asarray(libgguf.quantize_rows(weights, TYPES[type].id))
                end = time.perf_counter()
                losses = (loss(weights, b.view(np.uint8), type) for b in (ours, reference))
                speeds = (weights.size / 1e6 / s for s in (middle - start, end - middle))
                rows.append(Row(Path(path).name, type, *losses, *speeds))
    return rows


def table(rows: list[Row]) -> str:
    lines = ["| model | type | loss | reference | ratio | Mweights/s | reference |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for r in rows:
        ratio = r.loss / r.reference_loss
        lines.append(
            f"| {r.model} | {r.type} | {r.loss:.5f} | {r.reference_loss:.5f} | {ratio:.3f} "
            f"| {r.speed:.0f} | {r.reference_speed:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.quantizers", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("--rows", type=int, default=32, help="of each matrix (default 32)")
    parser.add_argument("-o", type=Path, help="also write the rows as JSON to this file")
    arguments = parser.parse_args()
    rows = [row for path in arguments.models for row in compare(path, arguments.rows)]
    print(table(rows))
    if arguments.o:
        machine = {"cpu": mmrt.cpu_info().model, "system": platform.platform()}
        document = {"machine": machine, "rows": [asdict(row) for row in rows]}
        arguments.o.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
