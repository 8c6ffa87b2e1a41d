"""What of a weight file is in memory, by tensor and layer."""

from collections.abc import Iterable, Sequence

from mmrt.core.mapping import Mapping
from mmrt.core.residency import Residency
from mmrt.core.tensor import Tensor
from mmrt.files import layers
from mmrt.files.layers import Layer


class FileResidency:
    """Which pages of a TensorFile were in memory at one moment.

    `files` says so for each file that it is made of, by path, and `whole` for all of them, with
    what else than weights is in them; `tensors` for each tensor, by name. `source` is how this is
    known: see Residency.
    """

    def __init__(self, mappings: Sequence[Mapping], tensors: dict[str, Tensor]) -> None:
        self.layers: list[Layer] = layers.group(tensors)
        self.files: dict[str, Residency] = {}
        self._pages: dict[str, tuple[str, int, int]] = {}  # tensor -> path, first page, end
        for mapping in mappings:
            self.files[mapping.path] = mapping.residency()
        self.whole = Residency.join(list(self.files.values()))
        self.source = self.whole.source
        for tensor in tensors.values():
            path, page = tensor.mapping.path, tensor.mapping.page_size
            first = tensor.offset // page
            end = -(-(tensor.offset + tensor.nbytes) // page) if tensor.nbytes else first
            self._pages[tensor.name] = path, first, end
        self.tensors = {name: self.of([name]) for name in tensors}
        self.page_size = mappings[0].page_size

    def __repr__(self) -> str:
        return f"<FileResidency of {len(self.tensors)} tensors: {self.whole!r}>"

    def of(self, names: Iterable[str]) -> Residency:
        """Of several tensors: in file order, pages that they share counted once."""
        ranges: list[Residency] = []
        path, done = "", 0
        for at, first, end in sorted(self._pages[name] for name in names):
            if at != path:
                path, done = at, 0
            first = max(first, done)
            if first < end:
                whole = self.files[path]
                ranges.append(Residency.of(whole.pages[first:end], whole.source))
                done = end
        return Residency.join(ranges)

    def layer(self, layer: Layer) -> Residency:
        return self.of(layer.names)
