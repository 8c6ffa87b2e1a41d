"""How a client wants its text written: the fields that all kinds of requests share."""

from dataclasses import dataclass
from typing import Any

from mmrt.serving import foreign
from mmrt.serving.fields import Fields
from mmrt.serving.house import Served
from mmrt.serving.kinds import Choice, Either, Flag, Kind, List, Number, Record, Table, Text, Whole
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused

MOST = 2**31 - 1
_LEAST_TOP_P = 1e-9

# The class of a text by its service tier: the lower, the earlier it runs.
_TIERS = {"auto": 0, "default": 0, "flex": 1, "priority": -1, "standard_only": 0, "scale": 0}

_SCHEMA = Record()


def declare(limits: Limits) -> dict[str, Kind]:
    """The fields that all kinds of requests share."""
    stop = Text(1, limits.stop_bytes)
    penalty, scale = Number(-2, 2), Number(0.01, 100)
    described = Record({"schema": _SCHEMA}, ("schema",))
    kinds = Choice("text", "json_object", "json_schema")
    format_ = Record({"type": kinds, "json_schema": described, "schema": _SCHEMA})
    return foreign.FIELDS | {
        "model": Text(),
        "n": Whole(1, limits.n),
        "best_of": Whole(1, limits.n),
        "stream": Flag(),
        "stream_options": Record({"include_usage": Flag()}),
        "temperature": Number(0, 100),
        "top_k": Whole(-1, MOST),
        "top_p": Number(0, 1),
        "min_p": Number(0, 1),
        "repeat_penalty": scale,
        "repetition_penalty": scale,
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "repeat_last_n": Whole(-1, MOST),
        "seed": Whole(-(2**63), 2**64 - 1),
        "stop": Either(stop, List(stop, limits.stop)),
        "ignore_eos": Flag(),
        "logit_bias": Table(Number(-100, 100), limits.logit_bias),
        "response_format": format_,
        "json_schema": Either(_SCHEMA, Flag()),
        "priority": Whole(-MOST, MOST),
        "service_tier": Choice(*_TIERS),
        "cache_salt": Text(),
    }


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


def read(fields: Fields, served: Served, owner: str) -> Asked:
    """What a request says of it. owner: whose it is; texts of different owners share nothing.
    Raises Refused."""
    n = fields.get("n", 1)
    if fields.get("best_of", n) != n:
        raise Refused(400, "best_of: this server chooses none: it must be n", param="best_of")
    options: dict[str, Any] = {"max_tokens": None, **served.defaults}
    options |= _sampling(fields, served)
    options |= _format(fields)
    tier = fields.get("service_tier", "auto")
    salt = fields.get("cache_salt", "")
    return Asked(
        options,
        n=n,
        priority=fields.get("priority", _TIERS[tier]),
        salt=f"{owner}:{salt}" if owner or salt else "",
        tier=tier if tier in ("flex", "priority") else "default",
        stream=fields.get("stream", False),
        include_usage=fields.object("stream_options").get("include_usage", False),
    )


def _format(fields: Fields) -> dict[str, Any]:
    """What the answers have to be, by `response_format` or llama-server's `json_schema`."""
    if fields.has("json_schema"):
        return {"json_schema": fields.get("json_schema")}
    given = fields.object("response_format")
    kind = given.get("type", "text")
    if kind == "json_schema":
        given.require("json_schema")
        return {"json_schema": given.object("json_schema").get("schema")}
    if kind == "json_object":
        schema = given.get("schema")
        return {"json_schema": schema} if schema else {"json_object": True}
    return {}


def _sampling(fields: Fields, served: Served) -> dict[str, Any]:
    top_k, top_p = fields.get("top_k"), fields.get("top_p")
    repeat = fields.get("repeat_penalty", fields.get("repetition_penalty"))
    found = {
        "top_k": None if top_k is None else max(top_k, 0),
        "top_p": None if top_p is None else max(top_p, _LEAST_TOP_P),
        "repeat_penalty": repeat,
        "seed": _seed(fields),
        "stop": _stop(fields),
        "ignore_eos": fields.get("ignore_eos") or None,
        "logit_bias": _logit_bias(fields, served),
    }
    alike = ("temperature", "min_p", "presence_penalty", "frequency_penalty", "repeat_last_n")
    found |= {name: fields.get(name) for name in alike}
    return {name: value for name, value in found.items() if value is not None}


def _seed(fields: Fields) -> int | None:
    """-1 asks for another one each time, as it does of llama-server."""
    seed: int | None = fields.get("seed")
    return None if seed in (None, -1) else seed % 2**64


def _stop(fields: Fields) -> list[str] | None:
    stop = fields.get("stop_sequences", fields.get("stop"))
    return [stop] if isinstance(stop, str) else stop


def _logit_bias(fields: Fields, served: Served) -> dict[int, float] | None:
    biases: dict[int, float] | None = fields.get("logit_bias")
    vocabulary = served.model.vocab_size
    for token in biases or ():
        if token >= vocabulary:
            name = fields.name("logit_bias")
            raise Refused(400, f"{name}: {token} is no token id below {vocabulary}", param=name)
    return biases
