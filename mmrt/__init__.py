"""mmrt: a memory-mapped tensor runtime for CPU inference.

    with mmrt.open("model.gguf") as f:            # maps the file, reads its header
        w = f["blk.0.ffn_up.weight"]              # a Tensor on the mapped pages
        y = w @ x                                 # multiplies the quantised blocks where they lie

    with mmrt.Model() as m:                       # the default model, or Model("model.gguf")
        print(m.generate("Once upon a time", max_tokens=64))

Everything is loaded when first used, so that importing the package costs next to nothing.
"""

import os.path
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

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


class _Rooms:
    """Finds a module that is named without its folder: mmrt.tokenizer is mmrt.text.tokenizer."""

    FOLDERS = ("core", "memory", "files", "text", "models.parts", "run", "sight")

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> "ModuleSpec | None":
        from importlib import machinery, util

        package, _, module = name.rpartition(".")
        if package != "mmrt" or module.startswith("_") or module in ("errors", "cli", *cls.FOLDERS):
            return None
        homes = (f"mmrt.{folder}.{module}" for folder in cls.FOLDERS)
        home = next((home for home in homes if util.find_spec(home)), None)
        return None if home is None else machinery.ModuleSpec(name, cls(), origin=home)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType":
        self._module = import_module(str(spec.origin))
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: "ModuleType") -> None:
        module.__spec__ = self._spec  # its own again: it has one name for itself


sys.meta_path.append(_Rooms)  # after those that find what lies where it is named


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
