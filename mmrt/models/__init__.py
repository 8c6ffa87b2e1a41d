"""Architectures. A file here is named as GGUF's general.architecture names it, and has

config(fields) -> Config        from the metadata
build(program, config, weights) the operations of the forward pass, in order
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mmrt.errors import FormatError, UnsupportedError


def architectures() -> list[str]:
    """The names of those that can run."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def architecture(metadata: Mapping[str, Any], source: str) -> ModuleType:
    """The module for the model with this metadata."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise FormatError(f"{source}: general.architecture: missing, or not a string")
    if name not in architectures():
        raise UnsupportedError(
            f"{source}: general.architecture is {name!r:.60}; "
            f"mmrt runs {', '.join(architectures())}"
        )
    return importlib.import_module(f"mmrt.models.{name}")
