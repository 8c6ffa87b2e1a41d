"""POST /v1/completions: texts that go on from a prompt, as it is."""

import codecs
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from mmrt.core.draw import Drawn
from mmrt.serving import asking, openai
from mmrt.serving.answers import Answers
from mmrt.serving.asking import Asked
from mmrt.serving.desk import Desk
from mmrt.serving.fields import Fields
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response, json_response
from mmrt.serving.kinds import Either, Flag, Kind, List, Record, Text, Whole
from mmrt.serving.limits import Limits
from mmrt.serving.problems import Refused
from mmrt.serving.scoring import score

_OBJECT = "text_completion"
_BROKEN = "\ufffd"
_MOST_TOKENS = 16  # where a request says nothing, as OpenAI has it


def declare(limits: Limits) -> Record:
    ids = List(Whole(0, asking.MOST), least=1)
    own: dict[str, Kind] = {
        "prompt": Either(Text(), ids, List(Either(Text(), ids), least=1)),
        "max_tokens": openai.TOKENS,
        "logprobs": openai.ALTERNATIVES,
        "echo": Flag(),
        "parse_special": Flag(),
    }
    return Record(asking.declare(limits) | own, ("prompt",))


async def respond(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare)
    asked = desk.asked(request, fields, served)
    openai.limit_tokens(asked, fields.get("max_tokens", _MOST_TOKENS))
    if fields.has("logprobs"):
        asked.ask_logprobs(fields.get("logprobs"))
    most = max(desk.limits.queue // asked.n, 1)
    prompts = await desk.house.apart(read_prompts, fields, served, most)
    echoes = await _echoes(prompts, asked, served, desk) if fields.get("echo") else [NO_ECHO]
    if asked.options["max_tokens"] == 0 and fields.get("echo"):
        return json_response(scored(prompts, echoes, asked, served))
    answers = await desk.begin(served, asked, [prompt.ids for prompt in prompts])
    if asked.stream:
        told = chunks(answers, asked, served, echoes)
        return openai.stream(told, request, answers)
    try:
        return json_response(await whole(answers, asked, served, echoes))
    finally:
        request.note = openai.note(answers)
        answers.texts.close()


class Prompt(NamedTuple):
    """text: None where it was given as token ids."""

    ids: list[int]
    text: str | None


def read_prompts(fields: Fields, served: Served, most: int) -> list[Prompt]:
    """The prompts of a request: a string, a list of strings, token ids or lists of these. Slow."""
    given, special = fields.get("prompt"), fields.get("parse_special", True)
    several = isinstance(given, list) and isinstance(given[0], str | list)
    prompts = given if several else [given]
    if len(prompts) > most:
        raise Refused(400, f"prompt: {len(prompts)} are more than {most}", param="prompt")
    return [_prompt(one, served, special) for one in prompts]


def _prompt(given: str | list[int], served: Served, special: bool) -> Prompt:
    if isinstance(given, str):
        served.require_room_for(len(given))
        ids, text = served.model.tokenize(given, parse_special=special), given
    else:
        ids, text = given, None
        vocabulary = served.model.vocab_size
        wrong = next((one for one in ids if not 0 <= one < vocabulary), None)
        if wrong is not None:
            raise Refused(
                400, f"prompt: {wrong!r:.40} is no token id below {vocabulary}", param="prompt"
            )
    if not ids:
        raise Refused(400, "prompt: it is empty", param="prompt")
    return Prompt(ids, text)


class Listed:
    """The tokens of a text with their log-probabilities, in the form of completions."""

    def __init__(self, served: Served, hidden: int = 0) -> None:
        """hidden: characters that the text lacks of its first tokens."""
        self._model = served.model
        self._offset = -hidden  # characters so far
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._take()

    def _take(self) -> None:
        self.tokens: list[str] = []
        self.logprobs: list[float | None] = []
        self.top: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def add(self, token: int, drawn: Drawn | None, shown: bool = True) -> None:
        """shown: the token is in the text."""
        self._place(self._model.tokenizer.token_bytes(token) if shown else b"")
        self.tokens.append(self._text(token))
        if drawn is None or drawn.logprob is None:
            self.logprobs.append(None)
            self.top.append(None)
            return
        self.logprobs.append(openai.finite(drawn.logprob))
        top = {self._text(one): openai.finite(logprob) for one, logprob in drawn.alternatives}
        self.top.append(top or None)

    def _place(self, spelled: bytes) -> None:
        """Notes where a token begins: in the midst of a character, where that character does."""
        held = self._decoder.getstate()[0]
        text = self._decoder.decode(spelled)
        # What was held has turned out to be no character, and stands as one.
        broken = text.startswith(_BROKEN) and not (held + spelled).startswith(_BROKEN.encode())
        self.offsets.append(max(self._offset + bool(held and broken), 0))
        self._offset += len(text)

    def _text(self, token: int) -> str:
        """Parts of characters are spelled as OpenAI does: bytes:\\xc3."""
        spelled = self._model.tokenizer.token_bytes(token)
        try:
            return spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        found = {
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        }
        self._take()
        return found


class Echo(NamedTuple):
    """A prompt that is told again before what was written after it. hidden: characters that its
    text lacks of its first tokens: what marks the beginning, a space before all."""

    text: str
    scores: list[tuple[int, Drawn | None]]
    hidden: int = 0


NO_ECHO = Echo("", [])


async def _echoes(
    prompts: Sequence[Prompt], asked: Asked, served: Served, desk: Desk
) -> list[Echo]:
    """The prompts as they are told again; with log-probabilities, if these were asked for."""
    texts = [
        served.model.detokenize(prompt.ids) if prompt.text is None else prompt.text
        for prompt in prompts
    ]
    if asked.logprobs is None:
        return [Echo(text, []) for text in texts]
    for prompt in prompts:
        served.require_room(len(prompt.ids) - 1)
    served.reserve(1)
    given_up = threading.Event()
    found = []
    try:
        for prompt, text in zip(prompts, texts, strict=True):
            scores = await desk.house.score(
                score, served.model, prompt.ids, asked.logprobs, given_up
            )
            spelled = b"".join(map(served.model.tokenizer.token_bytes, prompt.ids))
            whole = spelled.decode("utf-8", "replace")
            hidden = len(whole) - len(text) if whole.endswith(text) else 0
            found.append(Echo(text, list(zip(prompt.ids, scores, strict=True)), hidden))
    finally:
        given_up.set()
        served.free(1)
    return found


def scored(
    prompts: Sequence[Prompt], echoes: Sequence[Echo], asked: Asked, served: Served
) -> dict[str, Any]:
    """The response where nothing is to be written."""
    choices = []
    for i in range(len(prompts) * asked.n):
        echo = echoes[i // asked.n]
        listed = Listed(served, echo.hidden)
        for token, drawn in echo.scores:
            listed.add(token, drawn)
        odds = None if asked.logprobs is None else listed.take()
        choices.append(_choice(i, echo.text, odds, "length"))
    n_prompt = sum(len(prompt.ids) for prompt in prompts)
    counts = {"prompt_tokens": n_prompt, "completion_tokens": 0, "total_tokens": n_prompt}
    head = openai.envelope("cmpl-", _OBJECT, served.name, asked)
    return {**head, "choices": choices, "usage": counts}


async def whole(
    answers: Answers, asked: Asked, served: Served, echoes: Sequence[Echo]
) -> dict[str, Any]:
    """The response when all has been written."""
    choices: dict[int, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    async for chunk in chunks(answers, asked, served, echoes):
        head = chunk
        for choice in chunk["choices"]:
            merged = choices.setdefault(choice["index"], choice)
            if merged is not choice:
                merged["text"] += choice["text"]
                merged["finish_reason"] = choice["finish_reason"]
                for name, values in (choice["logprobs"] or {}).items():
                    merged["logprobs"][name] += values
    ordered = [choices[i] for i in sorted(choices)]
    return {**head, "choices": ordered, "usage": openai.usage(answers)}


async def chunks(
    answers: Answers, asked: Asked, served: Served, echoes: Sequence[Echo]
) -> AsyncIterator[dict[str, Any]]:
    """The response as it is written."""
    head = openai.envelope("cmpl-", _OBJECT, served.name, asked)
    empty = {"usage": None} if asked.include_usage else {}
    n_texts = len(answers.texts.handles)
    told = [echoes[i * len(echoes) // n_texts] for i in range(n_texts)]
    lists = [Listed(served, echo.hidden) for echo in told]

    def chunk(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        odds = None if asked.logprobs is None else lists[index].take()
        return {**head, "choices": [_choice(index, text, odds, reason)], **empty}

    for i, echo in enumerate(told):
        for token, drawn in echo.scores:
            lists[i].add(token, drawn)
        if echo.text:
            yield chunk(i, echo.text)
    async for said in answers:
        if said.token is not None and said.drawn is not None:
            shown = not served.model.tokenizer.is_special(said.token)
            lists[said.choice].add(said.token, said.drawn, shown)
        if said.what == "end":
            yield chunk(said.choice, "", said.text)
        elif said.text:
            yield chunk(said.choice, said.text)
    if asked.include_usage:
        yield {**head, "choices": [], "usage": openai.usage(answers)}


def _choice(index: int, text: str, odds: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": odds, "finish_reason": reason}
