"""Whether a tensor's values are numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from mmrt.core import quant
from mmrt.core.program import Program
from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.files.tensor_file import TensorFile


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


@contextmanager
def naming_nan(file: TensorFile, program: Program) -> Iterator[None]:
    """Where a step of the program fails over NaN, says which of the file's tensors has it."""
    try:
        yield
    except FormatError as error:
        own = (tensor for tensor in program.weights if file.holds(tensor))
        culprit = next((tensor for tensor in own if not is_finite(tensor)), None)
        what = f"tensor {culprit.name!r} holds NaN or infinity" if culprit else str(error)
        raise FormatError(f"{file.path}: {what}") from None
