"""What makes the drafts of a model's texts: `draft`, as Model and the command line take it."""

from mmrt.core.arguments import choice
from mmrt.core.state import StateStore
from mmrt.core.streaming import Streaming
from mmrt.errors import UnsupportedError
from mmrt.run.drafts import Drafting, Record
from mmrt.run.ngrams import Ngrams

DRAFTS = {
    "off": "none",
    "ngram": "what the text has said before",
}


class Drafts:
    """The drafts of a model's texts; draft: as Model's, store: where its texts are."""

    def __init__(self, draft: str | None, store: StateStore) -> None:
        """Raises ArgumentError for what makes none, UnsupportedError where there can be none."""
        if draft is not None:
            choice("draft", draft, DRAFTS)
        if store.is_recurrent:
            if draft not in (None, "off"):
                raise UnsupportedError(
                    f"draft: {draft!r}, where recurrent layers can forget no token of a draft"
                )
            draft = "off"
        self._draft = draft
        self.record = Record()

    def begin(self, streaming: Streaming | None) -> Drafting | None:
        """The drafts of a new text; None: it has none. streaming: how the model's weights are."""
        draft = self._draft or ("ngram" if _reads_all(streaming) else "off")
        return None if draft == "off" else Drafting(self.record, Ngrams())


def _reads_all(streaming: Streaming | None) -> bool:
    """Whether each step reads the same weights from the disk, however many tokens it has: not
    those of the experts, or the columns, that its tokens need."""
    if streaming is None or streaming.cache or streaming.column_slots:
        return False
    return streaming.streamed > 0
