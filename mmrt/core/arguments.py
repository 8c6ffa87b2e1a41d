"""What callers may pass: numbers of any library are numbers, truth values are none."""

import operator
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from mmrt.errors import ArgumentError, FileError, MmrtError

Called = TypeVar("Called", bound=Callable[..., Any])


def checked(function: Called) -> Called:
    """For compiled functions: what Cython and others raise about arguments is an ArgumentError."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except MmrtError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{function.__name__}: {error}") from error

    return cast(Called, call)


def index(name: str, value: Any) -> int:
    """`value`, if it is a whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{name}: {value!r:.60} is not a whole number")
    return operator.index(value)


def shape(name: str, value: Any) -> tuple[int, ...]:
    """`value` as a tuple, if it is one of whole numbers, or a list of them."""
    return tuple([index(name, n) for n in instance(name, value, Iterable, "a tuple of numbers")])


def whole(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> int:
    """`value`, if it is a whole number from `least` to `most`, of Python, NumPy or others.

    why: what else an error says.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        range_ = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"{name}: {value!r:.60} is not a whole number {range_}{why}")
    return number


def number(name: str, value: Any, least: float, most: float, above: bool = False) -> float:
    """`value`, if it is a number from `least` (above: more than that) to `most`."""
    given = float("nan")
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            given = float(value)
    if not least <= given <= most or (above and given == least):
        range_ = f"{'above' if above else 'from'} {least} to {most}"
        raise ArgumentError(f"{name}: {value!r:.60} is not a number {range_}")
    return given


def choice(name: str, value: Any, words: Iterable[str]) -> str:
    """`value`, if it is one of `words`."""
    words = list(words)
    if not isinstance(value, str) or value not in words:
        raise ArgumentError(f"{name}: there is no {value!r:.60}; there are {', '.join(words)}")
    return value


def known(options: Iterable[str], names: Iterable[str]) -> None:
    """Raises ArgumentError if one of `options` is none of `names`."""
    names = list(names)
    for option in options:
        if option not in names:
            import difflib

            near = difflib.get_close_matches(option, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ArgumentError(f"there is no option {option!r}{hint}")


def flag(name: str, value: Any) -> bool:
    """`value`, if it is a truth value, of Python or NumPy."""
    numpy = sys.modules.get("numpy")
    if not isinstance(value, bool) and (numpy is None or not isinstance(value, numpy.bool_)):
        raise ArgumentError(f"{name}: expected True or False, found {value!r:.60}")
    return bool(value)


def instance(name: str, value: Any, kind: Any, what: str) -> Any:
    """`value`, if it is of this type, or of one of these in a tuple; an error expects `what`."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{name}: expected {what}, found {value!r:.60}")
    return value


def text(name: str, value: Any) -> str:
    """`value`, if it is a str."""
    found: str = instance(name, value, str, "a str")
    return found


def texts(name: str, value: Any) -> list[str]:
    """`value` as a list, if it holds texts; one text is no list of its characters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name}: expected a list of texts, found {value!r:.60}")
    return [text(name, one) for one in value]


def path(name: str, value: Any) -> str:
    """`value` as a str, if it can be the path of a file."""
    found = os.fsdecode(instance(name, value, (str, bytes, os.PathLike), "that of a file"))
    if not found:
        raise ArgumentError(f"{name}: a path cannot be empty")
    if "\0" in found:
        raise ArgumentError(f"{name}: a path cannot hold NUL: {found!r:.200}")
    return found


def file_status(name: str, value: Any) -> os.stat_result:
    """What the system tells of the file at the path `value`. FileError where it tells nothing."""
    found = path(name, value)
    try:
        return os.stat(found)
    except OSError as error:
        raise FileError(error.errno, f"{found}: {error.strerror}") from None


def function(name: str, value: Any) -> None:
    """Raises ArgumentError if `value` is neither None nor something that can be called."""
    if value is not None and not callable(value):
        raise ArgumentError(f"{name}: {value!r:.60} cannot be called")


def token_ids(name: str, value: Any) -> list[Any]:
    """`value` as a list, if it can be one of token ids; what each is, is not looked at."""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        try:
            return list(value)
        except TypeError:
            pass
    raise ArgumentError(f"{name}: expected token ids, found {value!r:.60}")


def require_ids(ids: list[Any], vocabulary: int) -> None:
    """Raises ArgumentError unless all are ids of tokens."""
    for token in ids:
        number = isinstance(token, Integral) and not isinstance(token, bool)
        if not number or not 0 <= token < vocabulary:
            raise ArgumentError(
                f"token ids must be whole numbers from 0 to {vocabulary - 1}, not {token!r:.60}"
            )
