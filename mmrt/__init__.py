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
if not os.path.exists(os.path.join(_HERE, "core", "libmmrt.so")):
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
    "sequence",
    "streaming",
    "trace",
]

# Public name -> the module that has it.
_HOMES = {
    "open": "mmrt.files.formats",
    "TensorFile": "mmrt.files.formats",
    "Tensor": "mmrt.core.tensor",
    "Mapping": "mmrt.core.mapping",
    "Residency": "mmrt.core.residency",
    "Model": "mmrt.run.model",
    "Conversation": "mmrt.run.conversation",
    "Budget": "mmrt.memory.budget",
    "Options": "mmrt.run.generation",
    "Text": "mmrt.run.generation",
    "Stream": "mmrt.run.generation",
    "Sequence": "mmrt.run.sequence",
    "Sampler": "mmrt.run.sampler",
    "quantize": "mmrt.files.quantizer",
    "Tokenizer": "mmrt.text.tokenizer",
    "cpu_info": "mmrt.core.kernels",
    "os_info": "mmrt.memory.system",
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
# Public module -> the package that has it.
_ROOMS = {
    "counters": "mmrt.memory",
    "default_model": "mmrt.files",
    "errors": "mmrt",
    "formats": "mmrt.files",
    "hub": "mmrt.files",
    "kernels": "mmrt.core",
    "models": "mmrt",
    "numa": "mmrt.core",
    "pagetables": "mmrt.sight",
    "policies": "mmrt.files",
    "quant": "mmrt.core",
    "sequence": "mmrt.run",
    "streaming": "mmrt.core",
    "trace": "mmrt.sight",
}

if TYPE_CHECKING:
    from mmrt import errors, models
    from mmrt.core import kernels, numa, quant, streaming
    from mmrt.core.kernels import cpu_info
    from mmrt.core.mapping import Mapping
    from mmrt.core.residency import Residency
    from mmrt.core.tensor import Tensor
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
    from mmrt.files import default_model, formats, hub, policies
    from mmrt.files.formats import TensorFile, open
    from mmrt.files.quantizer import quantize
    from mmrt.memory import counters
    from mmrt.memory.budget import Budget
    from mmrt.memory.system import os_info
    from mmrt.run import sequence
    from mmrt.run.conversation import Conversation
    from mmrt.run.generation import Options, Stream, Text
    from mmrt.run.model import Model
    from mmrt.run.sampler import Sampler
    from mmrt.run.sequence import Sequence
    from mmrt.sight import pagetables, trace
    from mmrt.text.tokenizer import Tokenizer


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = import_module(f"{_ROOMS[name]}.{name}")
    else:
        raise AttributeError(f"module 'mmrt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
