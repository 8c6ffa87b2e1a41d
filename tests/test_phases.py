"""What texts were doing, and when: spans that follow one another, of which the last are kept."""

import random

from mmrt.run.phases import Phases, Span
from mmrt.sight.engines import strip


def test_spans_follow_one_another() -> None:
    phases = Phases(10.0)
    phases.note([(1, "waiting")], 10.5)
    phases.note([(1, "reading"), (2, "waiting")], 11.0)
    phases.note([(1, "reading"), (2, "waiting")], 12.0)
    phases.note([(1, "writing")], 13.0)
    assert phases.doing(1) == "writing" and phases.doing(2) == "waiting"
    phases.end(1, 14.0)
    phases.end(1, 15.0)
    assert phases.doing(1) is None
    assert phases.spans(16.0) == [
        Span(1, "waiting", 0.5, 1.0),
        Span(1, "reading", 1.0, 3.0),
        Span(1, "writing", 3.0, 4.0),
        Span(2, "waiting", 1.0, 6.0),
    ]


def test_memory_is_bounded() -> None:
    phases = Phases(0.0, most=10)
    for i in range(100):
        phases.note([(1, "writing" if i % 2 else "waiting")], float(i))
    found = phases.spans(100.0)
    assert len(found) == 11
    assert [span.end for span in found] == [float(i) for i in range(90, 101)]


def test_a_strip_has_what_took_longest() -> None:
    spans = [
        Span(1, "waiting", 0.0, 2.0),
        Span(1, "reading", 2.0, 4.4),
        Span(1, "writing", 4.4, 8.0),
    ]
    found = strip(spans, 0.0, 10.0, 5)
    assert found == ["waiting", "reading", "writing", "writing", None]
    assert strip(spans, 2.0, 5.0, 2) == ["reading", "reading"]
    assert strip([], 0.0, 10.0, 3) == [None] * 3


def test_strips_of_many_spans() -> None:
    """Each part has the sum of what falls into it."""
    draw, at, spans = random.Random(1), 0.0, []
    while at < 50:
        end = at + draw.random()
        spans.append(Span(1, draw.choice(["waiting", "reading", "writing"]), at, end))
        at = end
    for n in (1, 7, 100):
        for i, found in enumerate(strip(spans, 0.0, 50.0, n)):
            totals = {
                doing: sum(
                    max(min(s.end, (i + 1) * 50 / n) - max(s.start, i * 50 / n), 0)
                    for s in spans
                    if s.doing == doing
                )
                for doing in ("waiting", "reading", "writing")
            }
            assert found is not None and totals[found] > max(totals.values()) - 1e-9
