"""How a client wants its text written: the fields that all kinds of requests share."""

from dataclasses import dataclass
from typing import Any

from mmrt.serving.fields import Fields
from mmrt.serving.foreign import require_known
from mmrt.serving.house import Served
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused

_MOST = 2**31 - 1
_LEAST_TOP_P = 1e-9

# The class of a text by its service tier: the lower, the earlier it runs.
_TIERS = {"auto": 0, "default": 0, "flex": 1, "priority": -1, "standard_only": 0, "scale": 0}


@dataclass
class Asked:
    """options: those of Engine.submit() that choose tokens. n: texts after each prompt. must_call:
    the answers have to be calls of tools."""

    options: dict[str, Any]
    n: int = 1
    priority: int = 0
    salt: str = ""
    tier: str = "default"
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None
    must_call: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only their length may cut the answers."""
        return self.is_held or self.must_call

    @property
    def is_held(self) -> bool:
        """Whether the answers are to be JSON."""
        return "json_schema" in self.options or "json_object" in self.options

    def ask_logprobs(self, alternatives: int) -> None:
        """Has each token told with its log-probability, and so many of the likeliest."""
        self.logprobs = self.options["logprobs"] = alternatives

    def options_of(self, index: int) -> dict[str, Any]:
        """Those of the text `index`: each draws otherwise."""
        seed = self.options.get("seed")
        if seed is None or not index:
            return self.options
        return {**self.options, "seed": seed + index}


def read(fields: Fields, served: Served, limits: Limits, owner: str) -> Asked:
    """What a request says of it. owner: whose it is; texts of different owners share nothing.
    Raises Refused."""
    require_known(fields)
    n = fields.whole("n", 1, limits.n, 1) or 1
    if (fields.whole("best_of", 1, limits.n) or n) != n:
        raise Refused(400, "best_of: this server chooses none: it must be n", param="best_of")
    options: dict[str, Any] = {"max_tokens": None, **served.defaults}
    options |= _sampling(fields, served, limits)
    options |= _format(fields)
    tier = fields.choice("service_tier", _TIERS) or "auto"
    priority = fields.whole("priority", -_MOST, _MOST)
    salt = fields.text("cache_salt") or ""
    stream_options = fields.object("stream_options") or Fields({})
    return Asked(
        options,
        n=n,
        priority=_TIERS[tier] if priority is None else priority,
        salt=f"{owner}:{salt}" if owner or salt else "",
        tier=tier if tier in ("flex", "priority") else "default",
        stream=fields.flag("stream"),
        include_usage=stream_options.flag("include_usage"),
    )


def _format(fields: Fields) -> dict[str, Any]:
    """What the answers have to be, by `response_format` or llama-server's `json_schema`."""
    if fields.has("json_schema"):
        return {"json_schema": fields.get("json_schema")}
    given = fields.object("response_format") or Fields({})
    kind = given.choice("type", ["text", "json_object", "json_schema"], "text")
    if kind == "json_schema":
        given.require("json_schema")
        described = given.object("json_schema") or Fields({})
        described.require("schema")
        described.object("schema")
        return {"json_schema": described.get("schema")}
    if kind == "json_object":
        schema = given.object("schema")
        return {"json_schema": schema.plain()} if schema else {"json_object": True}
    return {}


def _sampling(fields: Fields, served: Served, limits: Limits) -> dict[str, Any]:
    top_k = fields.whole("top_k", -1, _MOST)
    top_p = fields.number("top_p", 0, 1)
    repeat = "repeat_penalty" if fields.has("repeat_penalty") else "repetition_penalty"
    found = {
        "temperature": fields.number("temperature", 0, 100),
        "top_k": None if top_k is None else max(top_k, 0),
        "top_p": None if top_p is None else max(top_p, _LEAST_TOP_P),
        "min_p": fields.number("min_p", 0, 1),
        "repeat_penalty": fields.number(repeat, 0.01, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repeat_last_n": fields.whole("repeat_last_n", -1, _MOST),
        "seed": _seed(fields),
        "stop": _stop(fields, limits),
        "ignore_eos": fields.flag("ignore_eos") or None,
        "logit_bias": _logit_bias(fields, served, limits),
    }
    return {name: value for name, value in found.items() if value is not None}


def _seed(fields: Fields) -> int | None:
    """-1 asks for another one each time, as it does of llama-server."""
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    return None if seed in (None, -1) else seed % 2**64


def _stop(fields: Fields, limits: Limits) -> list[str] | None:
    field_name = "stop_sequences" if fields.has("stop_sequences") else "stop"
    stop = fields.get(field_name)
    if stop is None:
        return None
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise fields.bad(field_name, "a string or a list of strings, none of them empty")
    if len(stops) > limits.stop or any(
        len(s.encode("utf-8", "replace")) > limits.stop_bytes for s in stops
    ):
        raise fields.bad(
            field_name, f"{limits.stop} strings at most, of {limits.stop_bytes} bytes at most"
        )
    return stops


def _logit_bias(fields: Fields, served: Served, limits: Limits) -> dict[int, float] | None:
    biases = fields.object("logit_bias")
    if biases is None:
        return None
    given, vocabulary = biases.plain(), served.model.vocab_size
    if len(given) > limits.logit_bias:
        raise Refused(400, f"logit_bias: more than {limits.logit_bias} tokens", param="logit_bias")
    found: dict[int, float] = {}
    for word in given:
        if not (word.isascii() and word.isdigit() and int(word[:10]) < vocabulary):
            name = biases.name(word)[:80]
            raise Refused(400, f"{name}: no token id below {vocabulary}", param="logit_bias")
        found[int(word)] = biases.number(word, -100, 100) or 0.0
    return found
