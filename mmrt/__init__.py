"""mmrt: a memory-mapped tensor runtime for CPU inference.

    with mmrt.open("model.gguf") as f:            # maps the file, reads its header
        w = f["blk.0.ffn_up.weight"]              # a Tensor on the mapped pages
        y = w @ x                                 # multiplies the quantised blocks where they lie

    with mmrt.Model() as m:                       # the default model, or Model("model.gguf")
        print(m.generate("Once upon a time", max_tokens=64))

Everything is loaded when first used, so that importing the package costs next to nothing.
"""

import os.path
from functools import cache
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.exists(os.path.join(_HERE, "core", "libmmrt.so")):
    raise ImportError(
        f"{_HERE} is mmrt's source, and its compiled parts are not there: start Python in another "
        "folder, where the installed mmrt is found, or build this one with `pip install -e .`"
    )


@cache
def _homes() -> dict[str, str]:
    """Public name -> the module or package that has it, as __init__.pyi lists them."""
    import ast

    with open(os.path.join(_HERE, "__init__.pyi")) as stub:
        imports = [node for node in ast.parse(stub.read()).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_homes())
    home = None if name.startswith("__") else _homes().get(name)
    if home is None:
        raise AttributeError(f"module 'mmrt' has no attribute {name!r}")
    value = vars(import_module(home)).get(name) or import_module(f"{home}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes()})
