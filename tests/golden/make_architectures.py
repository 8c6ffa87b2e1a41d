"""Make docs/architectures.md: what runs, and how far its logits are from llama.cpp's.

python tests/golden/make_architectures.py     (needs llama-cpp-python, gguf)
"""

import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

from peer_logits import compare  # noqa: E402

from mmrt import models  # noqa: E402

OUT = ROOT / "docs" / "architectures.md"

HEAD = """# Architectures

Models of these architectures run (`general.architecture` in the file's metadata). Written by
`tests/golden/make_architectures.py`.

Two tiny random models of each, one with all that its files may have and one with no more than they
must, read 70 tokens here and with llama.cpp. The figures are mean KL divergences of both, in nats:

- formulas: of the reference of mmrt's tests (`tests/oracle.py`) from llama.cpp, with weights, keys
  and values in float32
- mmrt: of mmrt from llama.cpp, with weights in float32, keys and values in float16
- rounding: of llama.cpp with keys and values in float16 from llama.cpp with them in float32

| architecture | models | formulas | mmrt | rounding |
| --- | --- | --- | --- | --- |
"""


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models.architectures():
            both = [compare(name, rich, Path(folder)) for rich in (True, False)]
            cells = " | ".join(
                ", ".join(f"{kl:.0e}" for kl in each) for each in zip(*both, strict=True)
            )
            about = import_module(f"mmrt.models.{name}").__doc__ or ""
            rows.append(f"| `{name}` | {' '.join(about.split())} | {cells} |\n")
            print(rows[-1], end="", file=sys.stderr)
    OUT.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
