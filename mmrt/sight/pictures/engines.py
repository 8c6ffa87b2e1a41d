"""An engine: the pages that its texts hold, coloured by who shares them, and what each text did."""

from collections.abc import Sequence

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from mmrt.core.state import PAGE_TOKENS
from mmrt.memory.sizes import human
from mmrt.run.phases import Doing, Span
from mmrt.run.snapshot import Snapshot, TextState
from mmrt.sight.engines import Run, name, owners, runs, stretch, strip
from mmrt.sight.pictures import colours
from mmrt.sight.pictures.drawing import Drawing, fitted

_WIDTH = 1080
_EDGE = 32
_LABEL = 150
_ROW = 16
_MOST_ROWS = 400  # of each panel
_TOLD = 8  # texts that a tip lists
_BINS = 400  # of a timeline

# Of pages, by the text that was there first.
_OWNERS = (
    "#60a0d8", "#b2e0b2", "#d8a860", "#a86f9e", "#50b8a8", "#d87f7f", "#9c94e0", "#c8c860",
)  # fmt: skip
DOING: dict[Doing, tuple[str, str]] = {
    "waiting": ("#57606f", "."),
    "reading": ("#60a0d8", "r"),
    "writing": ("#b2e0b2", "w"),
    "parked": ("#d8a860", "p"),
}


def about(snapshot: Snapshot) -> list[str]:
    """What is to be said of an engine in lines."""
    going_on = sum(text.doing is not None for text in snapshot.texts)
    page = snapshot.page_bytes or 1
    room = "" if snapshot.kv is None else f" of {human(snapshot.kv)}"
    lines = [
        f"{going_on} texts go on, {len(snapshot.texts) - going_on} have ended and are kept",
        f"{human(snapshot.held)}{room} held, {snapshot.held // page} pages of {human(page)} for "
        f"{PAGE_TOKENS} tokens",
        f"{human(snapshot.logical)} without sharing: {human(snapshot.saved)} saved, "
        f"{snapshot.copies} pages copied so far",
    ]
    if snapshot.written or snapshot.read:
        lines.append(
            f"{human(snapshot.written)} written to the disk so far, {human(snapshot.read)} read"
        )
    if snapshot.pss is not None:
        lines.append(f"{human(snapshot.pss)} of anonymous memory in the process (Pss_Anon)")
    return lines


def row_of(text: TextState) -> tuple[str, str, str]:
    """A text, what it does, and its tokens."""
    what = text.doing or "ended"
    tokens = f"{text.tokens}" if not text.number else f"{text.tokens} of {text.prompt_tokens}"
    if text.doing in (None, "writing"):
        tokens = str(text.tokens)
    return name(text), what, tokens


# ---- HTML and PNG ----


def draw(snapshot: Snapshot) -> Drawing:
    """The picture of an engine."""
    return _Picture(snapshot).drawing


class _Picture:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.drawing = Drawing(_WIDTH, title=f"engine of {snapshot.model}")
        self.left, self.right = _EDGE + _LABEL, _WIDTH - _EDGE
        self.y = float(_EDGE)
        self.head()
        self.pages()
        self.timeline()
        self.drawing.height = self.y + _EDGE

    def head(self) -> None:
        snapshot, write = self.snapshot, self.drawing.words
        write(_EDGE, self.y + 22, fitted(snapshot.model, 24, 640), 24)
        said = f"process {snapshot.process}, {snapshot.seconds:.1f} s after its engine began"
        write(self.right, self.y + 22, said, 13, colours.FAINT, "end")
        self.y += 46
        for line in about(snapshot):
            write(_EDGE, self.y, line, 13, colours.FAINT)
            self.y += 18
        self.y += 18

    def title(self, text: str, n: int) -> None:
        more = f"; {n - _MOST_ROWS} more are not drawn" if n > _MOST_ROWS else ""
        self.drawing.words(_EDGE, self.y, text + more, 12)
        self.y += 12

    def label(self, text: TextState) -> None:
        base = self.y + _ROW / 2 + 3
        who, what, tokens = row_of(text)
        self.drawing.words(_EDGE, base, who, 11)
        self.drawing.words(self.left - 8, base, f"{what}, {tokens}", 10, colours.FAINT, "end")

    def pages(self) -> None:
        """A row for each text, of its pages in order."""
        texts = self.snapshot.texts
        self.title(
            "pages, by text; those of one colour were first of one text, "
            "and a bright edge has what several hold",
            len(texts),
        )
        owner = owners(texts)
        holders = _holders(texts)
        most = max((len(text.pages) for text in texts), default=0) or 1
        step = min((self.right - self.left) / most, 14)
        for text in texts[:_MOST_ROWS]:
            self.label(text)
            for run in runs(text, owner):
                self.run(text, run, step, holders[run.pages[0].number])
            self.y += _ROW
        self.y += 34

    def run(self, text: TextState, run: Run, step: float, known: Sequence[int]) -> None:
        x, width = self.left + run.first * step, step * len(run.pages)
        gap = 1 if step > 3 else 0
        fill = _OWNERS[run.owner % len(_OWNERS)]
        shared = run.holders > 1
        for i in range(len(run.pages) if gap else 1):
            size = step if gap else width
            self.drawing.box(x + i * step, self.y, size - gap, _ROW - 2, fill)
        if shared:
            self.drawing.box(x, self.y + _ROW - 5, width - gap, 3, colours.TEXT)
        first, last = run.tokens
        count = len(run.pages)
        self.drawing.tip(
            x, self.y, width, _ROW - 2,
            [
                f"{name(text)}, page{'s' * (count > 1)} {run.first}"
                + (f" to {run.first + count - 1}" if count > 1 else "")
                + f", tokens {first} to {last}",
                fitted(f"numbers {run.places}", 13, 600),
                self.held_by(run, known),
            ],
        )  # fmt: skip

    def held_by(self, run: Run, known: Sequence[int]) -> str:
        if run.holders == 1:
            return "held by no other"
        names = [name(self.snapshot.texts[index]) for index in known[:_TOLD]]
        others = run.holders - len(names)
        return f"held by {', '.join(names)}" + (f" and {others} more" if others > 0 else "")

    def timeline(self) -> None:
        """A row for each text, of what it did."""
        rows = timelines(self.snapshot)
        if not rows:
            return
        begin, end = stretch(self.snapshot.spans)
        said = f"what each text did, from {begin:.2f} to {end:.2f} s after the engine began"
        self.title(said, len(rows))
        width = (self.right - self.left) / _BINS
        for number, spans in rows[-_MOST_ROWS:]:
            self.drawing.words(_EDGE, self.y + _ROW / 2 + 3, f"text {number}", 11)
            cells = strip(spans, begin, end, _BINS)
            first = 0
            for i in range(1, _BINS + 1):
                if i == _BINS or cells[i] != cells[first]:
                    x, size = self.left + first * width, (i - first) * width
                    times = [begin + at * (end - begin) / _BINS for at in (first, i)]
                    self.stretch(number, cells[first], x, size, times)
                    first = i
            self.y += _ROW
        self.y += 8
        x = float(self.left)
        for doing, (fill, _) in DOING.items():
            self.drawing.box(x, self.y, 14, 12, fill)
            self.drawing.words(x + 20, self.y + 10, doing, 11, colours.FAINT)
            x += 100
        self.y += 12

    def stretch(
        self, number: int, doing: Doing | None, x: float, size: float, times: Sequence[float]
    ) -> None:
        if doing is None:
            return
        self.drawing.box(x, self.y, size, _ROW - 2, DOING[doing][0])
        tip = f"text {number}: {doing}, {times[0]:.2f} to {times[1]:.2f} s"
        self.drawing.tip(x, self.y, size, _ROW - 2, [tip])


def _holders(texts: Sequence[TextState]) -> dict[int, list[int]]:
    """The texts that hold each page, as indices."""
    found: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        for page in text.pages:
            found.setdefault(page.number, []).append(index)
    return found


def timelines(snapshot: Snapshot) -> list[tuple[int, list[Span]]]:
    """The spans of each text, by its number."""
    found: dict[int, list[Span]] = {}
    for span in snapshot.spans:
        found.setdefault(span.text, []).append(span)
    return sorted(found.items())


# ---- terminals ----


class TerminalEngine:
    """The same in a terminal, for rich to print: a cell is a page, and a digit says how many hold
    it. Of longer texts neighbouring pages share a cell."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colourful = console.color_system is not None and not console.no_color
        faint = Style(color=colours.FAINT)
        texts, owner = self.snapshot.texts, owners(self.snapshot.texts)
        labels = [" ".join(row_of(text)) for text in texts]
        rows = timelines(self.snapshot)
        labels += [f"text {number}" for number, _ in rows]
        room = max(map(len, labels), default=0) + 1
        width = max(options.max_width - room, 10)
        most = max((len(text.pages) for text in texts), default=0)
        together = -(-most // width) or 1
        for text, label in zip(texts, labels, strict=False):
            yield Segment(f"{label:<{room}}", faint)
            for page in text.pages[::together]:
                mark = " " if page.holders == 1 else str(min(page.holders, 9))
                if colourful:
                    fill = Color.parse(_OWNERS[owner[page.number] % len(_OWNERS)])
                    yield Segment(mark, Style(color="black", bgcolor=fill))
                else:
                    yield Segment("█" if mark == " " else mark)
            yield Segment.line()
        together_said = f"; a cell is {together} pages" if together > 1 else ""
        yield Segment(f"pages; a digit: so many texts hold it, 9: or more{together_said}\n", faint)
        if not rows:
            return
        begin, end = stretch(self.snapshot.spans)
        yield Segment.line()
        for number, spans in rows:
            label = f"text {number}"
            yield Segment(f"{label:<{room}}", faint)
            for doing in strip(spans, begin, end, width):
                ground, letter = DOING[doing] if doing else ("", " ")
                style = Style(color="black", bgcolor=ground) if colourful and doing else None
                yield Segment(letter, style)
            yield Segment.line()
        legend = ", ".join(f"{letter} {doing}" for doing, (_, letter) in DOING.items())
        yield Segment(f"{begin:.2f} to {end:.2f} s: {legend}\n", faint)
