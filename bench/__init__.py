"""Benchmarks: they run from a clone, with the mmrt that is installed."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

# `python -m bench.peers` has Python look for modules in the clone first, whose mmrt/ may be source
# without its compiled parts. What is installed goes before it; what is built in place is found too.
if _ROOT in [Path(entry).resolve() for entry in sys.path]:
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
    sys.path.append(str(_ROOT))
