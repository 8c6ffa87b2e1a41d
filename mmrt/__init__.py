"""mmrt: a memory-mapped tensor runtime for CPU inference.

    with mmrt.open("model.gguf") as f:            # maps the file, reads its header
        w = f["blk.0.ffn_up.weight"]              # a Tensor on the mapped pages
        y = w @ x                                 # multiplies the quantised blocks where they lie

    with mmrt.Model() as m:                       # the default model, or Model("model.gguf")
        print(m.generate("Once upon a time", max_tokens=64))

Everything is loaded when first used, so that importing the package costs next to nothing.
"""

import os.path
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.exists(os.path.join(_HERE, "libmmrt.so")):
    raise ImportError(
        f"{_HERE} is mmrt's source, and its compiled parts are not there: start Python in another "
        "folder, where the installed mmrt is found, or build this one with `pip install -e .`"
    )

__all__ = [
    "ArgumentError",
    "Budget",
    "Conversation",
    "FileError",
    "FormatError",
    "InUseError",
    "Mapping",
    "MmrtError",
    "Model",
    "NoArrayError",
    "NotFoundError",
    "Options",
    "OutOfMemoryError",
    "Residency",
    "Sampler",
    "Sequence",
    "Stream",
    "Tensor",
    "TensorFile",
    "Text",
    "Tokenizer",
    "UnsupportedError",
    "ViewError",
    "counters",
    "cpu_info",
    "default_model",
    "errors",
    "formats",
    "hub",
    "kernels",
    "models",
    "numa",
    "open",
    "os_info",
    "pagetables",
    "policies",
    "quant",
    "quantize",
    "streaming",
    "trace",
]

# Public name -> the module that has it.
_HOMES = {
    "open": "mmrt.formats",
    "TensorFile": "mmrt.formats",
    "Tensor": "mmrt.tensor",
    "Mapping": "mmrt.mapping",
    "Residency": "mmrt.residency",
    "Model": "mmrt.model",
    "Conversation": "mmrt.conversation",
    "Budget": "mmrt.budget",
    "Options": "mmrt.generation",
    "Text": "mmrt.generation",
    "Stream": "mmrt.generation",
    "Sequence": "mmrt.sequence",
    "Sampler": "mmrt.sampler",
    "quantize": "mmrt.quantizer",
    "Tokenizer": "mmrt.tokenizer",
    "cpu_info": "mmrt.kernels",
    "os_info": "mmrt.system",
    "MmrtError": "mmrt.errors",
    "FileError": "mmrt.errors",
    "FormatError": "mmrt.errors",
    "UnsupportedError": "mmrt.errors",
    "ArgumentError": "mmrt.errors",
    "OutOfMemoryError": "mmrt.errors",
    "NotFoundError": "mmrt.errors",
    "ViewError": "mmrt.errors",
    "NoArrayError": "mmrt.errors",
    "InUseError": "mmrt.errors",
}
_MODULES = {
    *("counters", "default_model", "errors", "formats", "hub", "kernels", "models", "numa"),
    *("pagetables", "policies", "quant", "streaming", "trace"),
}

if TYPE_CHECKING:
    from mmrt import (
        counters,
        default_model,
        errors,
        formats,
        hub,
        kernels,
        models,
        numa,
        pagetables,
        policies,
        quant,
        streaming,
        trace,
    )
    from mmrt.budget import Budget
    from mmrt.conversation import Conversation
    from mmrt.errors import (
        ArgumentError,
        FileError,
        FormatError,
        InUseError,
        MmrtError,
        NoArrayError,
        NotFoundError,
        OutOfMemoryError,
        UnsupportedError,
        ViewError,
    )
    from mmrt.formats import TensorFile, open
    from mmrt.generation import Options, Stream, Text
    from mmrt.kernels import cpu_info
    from mmrt.mapping import Mapping
    from mmrt.model import Model
    from mmrt.quantizer import quantize
    from mmrt.residency import Residency
    from mmrt.sampler import Sampler
    from mmrt.sequence import Sequence
    from mmrt.system import os_info
    from mmrt.tensor import Tensor
    from mmrt.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"mmrt.{name}")
    else:
        raise AttributeError(f"module 'mmrt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
