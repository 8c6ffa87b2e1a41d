from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class TensorType(NamedTuple):
    name: str
    id: int
    elements: int
    bytes: int
    has_unpack: bool  # its values can be read
    has_pack: bool  # values can be written as this type

TYPES: dict[str, TensorType]

def dequantize(type: str, blocks: Buffer, n_elements: int) -> NDArray[np.float32]: ...
