"""What every weight format opens to: names and their tensors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmrt.core import mapping as mapped
from mmrt.core.arguments import text, texts
from mmrt.core.tensor import Tensor
from mmrt.errors import InUseError, NotFoundError
from mmrt.files import caching, selection
from mmrt.files.residency import FileResidency


class TensorFile(Mapping[str, Tensor]):
    """A weight file, as a mapping of names to Tensors in file order; a context manager.

    `metadata` is what else the file says; `format` is its format's name. `paths` are the files that
    it is made of, usually one; `path` is the first of them and `mappings` are theirs.

    It pickles as its mappings do, by path, without its bytes: other processes map the same pages.
    """

    def __init__(
        self,
        format: str,
        mappings: Sequence[mapped.Mapping],
        tensors: dict[str, Tensor],
        metadata: Mapping[str, Any],
    ) -> None:
        self.format = format
        self.mappings = tuple(mappings)
        self.metadata = metadata
        self._tensors = tensors

    @property
    def path(self) -> str:
        return self.mappings[0].path

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(mapping.path for mapping in self.mappings)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except (KeyError, TypeError):  # which is for what no dict can hold
            import difflib

            near = difflib.get_close_matches(str(name), self._tensors, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise NotFoundError(f"{self.path} has no tensor {name!r}{hint}") from None

    # Mapping's own go through __getitem__, whose search for near names is slow.
    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._tensors

    def get(self, name: str, default: Any = None) -> Any:
        return self._tensors[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # Two files are equal only if they are the same object, not if their tensors are.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def nbytes(self) -> int:
        """Bytes in all tensors together."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def residency(self) -> FileResidency:
        """Which pages of all its files are in memory now. Reads no weights in."""
        return FileResidency(self.mappings, self._tensors)

    def select(self, layers: str | None = None, tensors: Sequence[str] = ()) -> list[str]:
        """Names of the tensors in `layers` ("0-3,7"; None: in all, and in none) that match one of
        the shell patterns `tensors` (none: all). ArgumentError where a part of it finds nothing.
        """
        numbers = None if layers is None else selection.layer_numbers(text("layers", layers))
        return selection.select(self, numbers, texts("tensors", tensors))

    def warm(
        self, names: Iterable[str] | None = None, progress: caching.Progress | None = None
    ) -> caching.Moved:
        """Reads these tensors (None: all files whole) into the page cache, and waits for it.

        progress(done, total) is called with bytes. What came of it is returned: where memory is
        short, the first pages are gone again when the last are read. Raises UnsupportedError
        before Linux 5.14.
        """
        return caching.move(self.mappings, self._tensors, "in", names, progress)

    def evict(
        self, names: Iterable[str] | None = None, progress: caching.Progress | None = None
    ) -> caching.Moved:
        """Drops these tensors (None: all files whole) from memory, but for edge pages shared with
        others; waits until the disk has what it has not got yet. The page cache keeps what other
        processes map.
        """
        return caching.move(self.mappings, self._tensors, "out", names, progress)

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return any(mapping.closed for mapping in self.mappings)

    def close(self) -> None:
        """Unmaps the file. Its tensors stay as objects, but their bytes are gone.

        Raises InUseError, and closes nothing, while views of any tensor are alive.
        """
        self.require_unviewed()
        with ExitStack() as all_of_them:  # also where one tells that its file was cut short
            for mapping in self.mappings:
                all_of_them.callback(mapping.close)

    def holds(self, tensor: Tensor) -> bool:
        """Whether it lies in one of its files."""
        return any(tensor.mapping is mapping for mapping in self.mappings)

    def require_unviewed(self, except_for: int = 0) -> None:
        """Raises InUseError where there are more views of its tensors than these."""
        views = sum(mapping.views for mapping in self.mappings) - except_for
        if views > 0:
            raise InUseError(f"cannot close {self.path}: views of its tensors are alive ({views})")

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} tensors, {self.nbytes} bytes"
        return f"<{self.format} file {self.path!r}, {state}>"
