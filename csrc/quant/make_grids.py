"""Writes the grids of the IQ types: `python csrc/quant/make_grids.py`, with the gguf package.

A grid is a list of vectors that the format defines. Each file holds the lists of one family, an
entry of a list as one number in hexadecimal, 16 to a row: element i of a vector of eight is the
pair of bits i, of a vector of four the nibble i. What these digits stand for is in grids.c.
"""

from pathlib import Path

import numpy as np
from gguf import quants

FAMILIES = {"iq1": ["IQ1_S"], "iq2": ["IQ2_XXS", "IQ2_XS", "IQ2_S"], "iq3": ["IQ3_XXS", "IQ3_S"]}
ENTRIES_IN_ROW = 16


def entries(name: str) -> list[int]:
    """The grid's vectors as numbers, its levels as digits."""
    oracle = getattr(quants, name)
    oracle.init_grid()
    levels = np.array(oracle.grid_map, np.float32)
    digits = np.searchsorted(levels, oracle.grid.reshape(oracle.grid_shape)).astype(int)
    places = 16 // digits.shape[1] * np.arange(digits.shape[1])
    return [int(entry) for entry in (digits << places).sum(axis=1)]


def rows(name: str) -> list[str]:
    texts = [f"{entry:04x}" for entry in entries(name)]
    starts = range(0, len(texts), ENTRIES_IN_ROW)
    return [f"MMRT_{name}({','.join(texts[i : i + ENTRIES_IN_ROW])})" for i in starts]


for family, names in FAMILIES.items():
    lines = [f"/* The grids of {', '.join(names)}, made by make_grids.py; read in grids.c. */"]
    for name in names:
        lines += ["", f"#ifdef MMRT_{name}", *rows(name), f"#undef MMRT_{name}", "#endif"]
    Path(__file__).with_name(f"{family}_grids.def").write_text("\n".join(lines) + "\n")
