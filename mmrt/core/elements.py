"""Types whose elements stand on their own, not in blocks with a scale: one line each, in ELEMENTS.

Most are known to GGUF and the core too, which multiplies F32, F16 and BF16. The others come from
other formats; they can be looked at and converted.
"""

import math
import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

# DLPack's codes for kinds of numbers.
INT, UINT, FLOAT, BFLOAT, COMPLEX, BOOL = 0, 1, 2, 4, 5, 6
E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, E8M0FNU = 10, 11, 12, 13, 14  # since DLPack 1.1


def _float8(code: int, exponent_bits: int, bias: int) -> float:
    """The value of a byte by IEEE 754's rule for finite numbers, its sign in the top bit."""
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = divmod(code & 0x7F, 1 << mantissa_bits)
    if exponent:
        mantissa += 1 << mantissa_bits
    magnitude = math.ldexp(mantissa, max(exponent, 1) - bias - mantissa_bits)
    return -magnitude if code & 0x80 else magnitude


def _e4m3(code: int) -> float:
    """No infinities: the codes that would be, but for the last, are numbers up to 448."""
    return math.nan if code & 0x7F == 0x7F else _float8(code, 4, 7)


def _e5m2(code: int) -> float:
    """The upper half of a float16."""
    value: float = struct.unpack("<e", bytes([0, code]))[0]
    return value


def _fnuz(code: int, exponent_bits: int, bias: int) -> float:
    """Neither infinities nor a negative zero, whose code is NaN."""
    return math.nan if code == 0x80 else _float8(code, exponent_bits, bias)


def _e8m0(code: int) -> float:
    """A power of two."""
    return math.nan if code == 0xFF else math.ldexp(1, code - 127)


class Element(NamedTuple):
    bytes: int
    dlpack: int  # a code from above
    letter: str | None  # how buffers spell it (PEP 3118); None: NumPy lacks it and sees bytes
    value: Callable[[int], float] | None = None  # of an 8-bit float
    ml_dtype: str | None = None  # what the package ml_dtypes calls it, if NumPy lacks it


# Called as GGUF and safetensors call them.
ELEMENTS = {
    "F64": Element(8, FLOAT, "d"),
    "F32": Element(4, FLOAT, "f"),
    "F16": Element(2, FLOAT, "e"),
    "BF16": Element(2, BFLOAT, None, None, "bfloat16"),
    "F8_E4M3": Element(1, E4M3FN, None, _e4m3, "float8_e4m3fn"),
    "F8_E5M2": Element(1, E5M2, None, _e5m2, "float8_e5m2"),
    "F8_E4M3FNUZ": Element(
        1, E4M3FNUZ, None, partial(_fnuz, exponent_bits=4, bias=8), "float8_e4m3fnuz"
    ),
    "F8_E5M2FNUZ": Element(
        1, E5M2FNUZ, None, partial(_fnuz, exponent_bits=5, bias=16), "float8_e5m2fnuz"
    ),
    "F8_E8M0": Element(1, E8M0FNU, None, _e8m0, "float8_e8m0fnu"),
    "I64": Element(8, INT, "q"),
    "I32": Element(4, INT, "i"),
    "I16": Element(2, INT, "h"),
    "I8": Element(1, INT, "b"),
    "U64": Element(8, UINT, "Q"),
    "U32": Element(4, UINT, "I"),
    "U16": Element(2, UINT, "H"),
    "U8": Element(1, UINT, "B"),
    "BOOL": Element(1, BOOL, "?"),
    "C64": Element(8, COMPLEX, "Zf"),
    "C128": Element(16, COMPLEX, "Zd"),
}

# How keys and values may be stored, by llama.cpp's names: tensor types.
KV_TYPES = {"f16": "F16", "q8_0": "Q8_0"}
