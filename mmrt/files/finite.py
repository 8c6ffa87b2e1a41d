"""Whether a tensor's values are numbers."""

import numpy as np

from mmrt.core import quant
from mmrt.core.tensor import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite; reads it in pieces."""
    kind = quant.TYPES[tensor.type]
    blocks = tensor.blocks().ravel()
    step = max((1 << 20) // kind.elements, 1) * kind.bytes
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        values = quant.dequantize(tensor.type, part.data, len(part) // kind.bytes * kind.elements)
        if not np.isfinite(values).all():
            return False
    return True
