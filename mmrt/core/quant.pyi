from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[Any]  # type checkers know that arrays are buffers from Python 3.12 on

class TensorType(NamedTuple):
    name: str
    id: int
    elements: int
    bytes: int
    has_unpack: bool  # its values can be read
    has_pack: bool  # values can be written as this type

TYPES: dict[str, TensorType]

def dequantize(type: str, blocks: _Bytes, n_elements: int) -> NDArray[np.float32]: ...
