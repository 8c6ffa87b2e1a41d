"""A trace in Chrome's trace event format, which chrome://tracing and ui.perfetto.dev open:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from typing import Any

from mmrt.run.snapshot import Snapshot
from mmrt.sight.trace import Span, Step, Trace

_PID = _TID = 1
_MIB = 1 << 20

Event = dict[str, Any]


def events(trace: Trace) -> dict[str, Any]:
    """The whole document, for json.dump. Times are in microseconds from the first mark or look.

    A slice for each step, and inside it one for each layer, with faults and bytes read as its
    arguments; counters for what the process read and for the weights in memory, by layer.
    """
    times = [look.ns for look in trace.looks] + [step.whole.start_ns for step in trace.steps[:1]]
    zero = min(times, default=0)
    found = [
        {"ph": "M", "pid": _PID, "tid": _TID, "name": name, "args": {"name": value}}
        for name, value in (("process_name", f"mmrt {trace.model}"), ("thread_name", "generation"))
    ]
    for number, step in enumerate(trace.steps):
        found += _of_step(trace, number, step, zero)
    for look in trace.looks:
        found.append(_counter("weights in memory, MiB", look.ns - zero, {
            "resident": sum(look.resident.values()) / _MIB,
        }))  # fmt: skip
        found.append(_counter("layers in memory, MiB", look.ns - zero, {
            label: n_bytes / _MIB for label, n_bytes in look.resident.items()
        }))  # fmt: skip
    return {"traceEvents": found, "displayTimeUnit": "ms", "otherData": _about(trace)}


def _of_step(trace: Trace, number: int, step: Step, zero: int) -> list[Event]:
    whole = step.whole
    reading = number < len(trace.prompt)
    last = step.position + step.n_tokens - 1
    what = f"prompt {step.position}-{last}" if reading else f"token {step.position}"
    if step.n_texts > 1:
        what = f"{step.n_tokens} tokens of {step.n_texts} texts"
    about = {"position": step.position, "tokens": step.n_tokens, "wrote": step.text}
    found = [_slice(what, "step", whole, zero, about)]
    found += [
        _slice(label, "layer", span, zero, {})
        for label, span in zip(trace.stretches, step.spans, strict=True)
    ]
    rate = whole.read_bytes / _MIB / (whole.ns * 1e-9) if whole.ns else 0.0
    for at, value in ((whole.start_ns, rate), (whole.start_ns + whole.ns, 0.0)):
        found.append(_counter("read from the disk, MiB/s", at - zero, {"rate": value}))
    return found


def _slice(name: str, category: str, span: Span, zero: int, about: dict[str, Any]) -> Event:
    costs = {key: value for key, value in span._asdict().items() if key not in ("start_ns", "ns")}
    return {
        "ph": "X", "pid": _PID, "tid": _TID, "name": name, "cat": category,
        "ts": (span.start_ns - zero) / 1000, "dur": span.ns / 1000, "args": about | costs,
    }  # fmt: skip


def _counter(name: str, ns: int, values: dict[str, float]) -> Event:
    return {"ph": "C", "pid": _PID, "name": name, "ts": ns / 1000, "args": values}


def _about(trace: Trace) -> dict[str, Any]:
    """What holds for the whole of it."""
    about: dict[str, Any] = {
        "model": trace.model,
        "residency": trace.source,
        "weights_bytes": sum(trace.sizes.values()),
    }
    if trace.reads:
        about["reads"] = vars(trace.reads)
    for when, footprint in (("before", trace.before), ("after", trace.after)):
        if footprint:
            about[when] = vars(footprint)
    if trace.page_tables:
        before, after = trace.page_tables
        about["page_tables_predicted"] = {"before": before.nbytes, "after": after.nbytes}
    return about


def of_texts(snapshot: Snapshot) -> dict[str, Any]:
    """What an engine's texts did, for json.dump: a row for each text, a slice for each span."""
    names = [("process_name", 0, f"mmrt {snapshot.model}")]
    numbers = sorted({span.text for span in snapshot.spans})
    names += [("thread_name", number, f"text {number}") for number in numbers]
    found: list[Event] = [
        {"ph": "M", "pid": _PID, "tid": thread, "name": what, "args": {"name": name}}
        for what, thread, name in names
    ]
    for span in snapshot.spans:
        found.append({
            "ph": "X", "pid": _PID, "tid": span.text, "name": span.doing, "cat": "text",
            "ts": span.start * 1e6, "dur": (span.end - span.start) * 1e6, "args": {},
        })  # fmt: skip
    return {"traceEvents": found, "displayTimeUnit": "ms"}
