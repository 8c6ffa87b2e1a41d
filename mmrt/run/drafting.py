"""What makes the drafts of a model's texts: `draft`, as Model and the command line take it."""

import os
from collections.abc import Callable

from mmrt.core.arguments import path
from mmrt.core.streaming import Streaming
from mmrt.errors import MissingFileError
from mmrt.files.tensor_file import TensorFile
from mmrt.run.drafts import Drafting, Record
from mmrt.run.ngrams import Ngrams
from mmrt.run.smaller import Smaller, SmallerModel, require_same_vocabulary


class Drafts:
    """The drafts of a model's texts; draft: as Model's."""

    def __init__(self, draft: str | os.PathLike[str] | None) -> None:
        """Raises ArgumentError for what makes none, MissingFileError for a file that is not."""
        self._draft = None if draft is None else path("draft", draft)
        self._smaller: SmallerModel | None = None
        self._vocab_size = 0
        self.record = Record()
        if self._draft not in (None, "ngram", "off") and not os.path.exists(str(self._draft)):
            raise MissingFileError(f"draft: {self._draft!r:.200} is not ngram, off, or a file")

    def open(
        self,
        file: TensorFile,
        vocab_size: int,
        smaller: Callable[[str], SmallerModel],
    ) -> None:
        """For the model in `file`. smaller: opens another to guess.

        Raises UnsupportedError where the smaller one is recurrent, ArgumentError for one of another
        vocabulary, and what opening it raises.
        """
        self._vocab_size = vocab_size
        if self._draft not in (None, "ngram", "off"):
            self._smaller = smaller(str(self._draft))
            require_same_vocabulary(self._smaller, file)

    @property
    def nbytes(self) -> int:
        """What the smaller model holds: weights, keys and values, scratch."""
        if self._smaller is None:
            return 0
        held = self._smaller.memory
        return held.kept + held.anonymous

    def close(self) -> None:
        """Lets go of the smaller model, which is gone with the last text that it guesses for."""
        self._smaller = None

    def begin(self, streaming: Streaming | None) -> Drafting | None:
        """The drafts of a new text; None: it has none. streaming: how the model's weights are."""
        if self._smaller is not None:
            return Drafting(self.record, Smaller(self._smaller, self._vocab_size))
        draft = self._draft or ("ngram" if _reads_all(streaming) else "off")
        return None if draft == "off" else Drafting(self.record, Ngrams())


def _reads_all(streaming: Streaming | None) -> bool:
    """Whether each step reads the same weights from the disk, however many tokens it has: not
    those of the experts, or the columns, that its tokens need."""
    if streaming is None or streaming.cache or streaming.column_slots:
        return False
    return streaming.streamed > 0
