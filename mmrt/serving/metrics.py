"""GET /metrics: how the server fares, as Prometheus reads it.

Names that begin with vllm: mean what they mean to vLLM, whose dashboards and autoscalers work with
them; those that begin with mmrt: are this server's own.
"""

from collections.abc import Iterable, Iterator

from mmrt.serving.desk import Desk
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response
from mmrt.serving.record import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def respond(desk: Desk, request: Request) -> Response:
    models = list(desk.house.models.values())
    told = await desk.house.apart(text, models)
    return Response(200, told.encode(), CONTENT_TYPE)


def text(models: Iterable[Served]) -> str:
    """All metrics."""
    found: dict[str, list[str]] = {}

    def tell(name: str, kind: str, help_: str, lines: Iterable[str]) -> None:
        head = [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        found.setdefault(name, head).extend(lines)

    for served in models:
        labels = f'model_name="{_escaped(served.name)}"'
        for name, kind, help_, value in _numbers(served):
            tell(name, kind, help_, [f"{name}{{{labels}}} {value}"])
        record = served.record
        name = "vllm:request_success_total"
        reasons = ("stop", "length", "abort", "error")
        ends = [f'{name}{{{labels},finished_reason="{r}"}} {record.ended[r]}' for r in reasons]
        tell(name, "counter", "Texts that have ended, by reason.", ends)
        for name, histogram, help_ in (
            ("time_to_first_token", record.first_token, "to the first token"),
            ("inter_token_latency", record.between_tokens, "between two tokens"),
            ("e2e_request_latency", record.whole, "to the end"),
            ("request_queue_time", record.queued, "until the prompt began to be read"),
            ("request_prefill_time", record.prefill, "in which the prompt was read"),
            ("request_decode_time", record.decode, "from the first token to the last"),
        ):
            name = f"vllm:{name}_seconds"
            tell(name, "histogram", f"Seconds {help_}.", _buckets(histogram, name, labels))
    return "\n".join(line for lines in found.values() for line in lines) + "\n"


def _numbers(served: Served) -> Iterator[tuple[str, str, str, float]]:
    """(name, type, help, value)"""
    model, engine, record = served.model, served.engine, served.record
    live = list(served.live)
    running = sum(handle.started is not None for handle in live)
    sharing = model.store.sharing
    held = sharing.held
    room = held + model.spare_bytes
    yield "vllm:num_requests_running", "gauge", "Texts that have begun.", running
    yield "vllm:num_requests_waiting", "gauge", "Texts that wait.", len(live) - running
    yield (
        "vllm:kv_cache_usage_perc", "gauge",
        "Of the room for keys and values, the part taken: 1 is all.", held / room if room else 1.0,
    )  # fmt: skip
    yield ("vllm:prefix_cache_queries_total", "counter", "Tokens of prompts.", record.prompt_tokens)
    yield (
        "vllm:prefix_cache_hits_total", "counter", "Of these, tokens found in memory.",
        record.cached_tokens,
    )  # fmt: skip
    yield "vllm:prompt_tokens_total", "counter", "Tokens of prompts.", record.prompt_tokens
    yield "vllm:generation_tokens_total", "counter", "Tokens written.", record.tokens
    yield (
        "vllm:num_preemptions_total", "counter", "Texts that gave their memory up for a while.",
        record.parked,
    )  # fmt: skip
    drafts, name = model.drafts.record, "vllm:spec_decode_num_"
    yield f"{name}drafts_total", "counter", "Drafts that a step has verified.", drafts.steps
    yield f"{name}draft_tokens_total", "counter", "Their tokens.", drafts.drafted
    yield f"{name}accepted_tokens_total", "counter", "Of these, the right ones.", drafts.accepted
    yield "mmrt:requests_refused_total", "counter", "Requests refused with 429.", record.refused
    yield "mmrt:steps_total", "counter", "Readings of the weights.", engine.steps
    yield "mmrt:step_seconds_total", "counter", "Seconds in them.", round(engine.step_seconds, 6)
    yield (
        "mmrt:evaluated_tokens_total", "counter", "Tokens that the model has read.",
        engine.evaluated_tokens,
    )  # fmt: skip
    yield "mmrt:kv_bytes", "gauge", "Bytes of keys and values.", held
    yield (
        "mmrt:kv_logical_bytes", "gauge", "Bytes that they would take if no two texts shared any.",
        sharing.logical,
    )  # fmt: skip
    memory = model.memory
    yield "mmrt:weights_bytes", "gauge", "Bytes of weights.", memory.weights
    yield "mmrt:weights_kept_bytes", "gauge", "Of these, bytes kept in memory.", memory.kept


def _buckets(histogram: Histogram, name: str, labels: str) -> Iterator[str]:
    below = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        below += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
    yield f"{name}_sum{{{labels}}} {histogram.sum:.6f}"
    yield f"{name}_count{{{labels}}} {below}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
