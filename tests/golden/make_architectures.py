"""Make docs/architectures.md and the table in README.md: what runs, and how far its logits are
from llama.cpp's.

python tests/golden/make_architectures.py     (needs llama-cpp-python, gguf)
"""

import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

from peer_logits import compare  # noqa: E402

from mmrt import models  # noqa: E402

OUT = ROOT / "docs" / "architectures.md"
README = ROOT / "README.md"

HEAD = """# Architectures

Models of these architectures run (`general.architecture` in the file's metadata). Written by
`tests/golden/make_architectures.py`.

Two tiny random models of each, one with all that its files may have and one with no more than they
must, read 70 tokens here and with llama.cpp. The figures are mean KL divergences of both, in nats:

- formulas: of the reference of mmrt's tests (`tests/oracle.py`) from llama.cpp, with weights, keys
  and values in float32
- mmrt: of mmrt from llama.cpp, with weights in float32, keys and values in float16; the larger of
  two, as mmrt reads all tokens in one step and one by one
- rounding: of llama.cpp with keys and values in float16 from llama.cpp with them in float32

llama.cpp does not run `opt`: there the reference stands in its place, with keys and values in
float32 and float16.

| architecture | models | formulas | mmrt | rounding |
| --- | --- | --- | --- | --- |
"""


# The table in README.md stands between two comments.
TABLE = re.compile(r"(?<=<!-- architectures -->\n).*?(?=<!-- /architectures -->)", re.DOTALL)
SIDE_BY_SIDE = 4  # architectures in a row of it


def short_table(farthest: dict[str, float]) -> str:
    cells = [f"`{name}` | {kl:.0e}" for name, kl in farthest.items()]
    cells += [" | "] * (-len(cells) % SIDE_BY_SIDE)
    n_rows = len(cells) // SIDE_BY_SIDE
    rows = [" | ".join(cells[i::n_rows]) for i in range(n_rows)]
    head = [
        " | ".join(["architecture | KL"] * SIDE_BY_SIDE),
        " | ".join(["--- | ---"] * SIDE_BY_SIDE),
    ]
    return "".join(f"| {row} |\n" for row in head + rows)


def main() -> None:
    rows, farthest = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in models.architectures():
            both = [compare(name, rich, Path(folder)) for rich in (True, False)]
            cells = " | ".join(
                ", ".join(f"{kl:.0e}" for kl in each) for each in zip(*both, strict=True)
            )
            farthest[name] = max(found.found for found in both)
            about = import_module(f"mmrt.models.{name}").__doc__ or ""
            rows.append(f"| `{name}` | {' '.join(about.split())} | {cells} |\n")
            print(rows[-1], end="", file=sys.stderr)
    OUT.write_text(HEAD + "".join(rows))
    README.write_text(TABLE.sub(lambda _: short_table(farthest), README.read_text()))


if __name__ == "__main__":
    main()
