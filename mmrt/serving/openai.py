"""The shapes that OpenAI's clients expect, of chats and of completions."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from mmrt import __version__
from mmrt.core.draw import Drawn
from mmrt.run.text_model import TextModel
from mmrt.serving import sse
from mmrt.serving.answers import Answers
from mmrt.serving.asking import MOST, Asked
from mmrt.serving.http import Request, Response
from mmrt.serving.kinds import Whole
from mmrt.serving.problems import refused

FINGERPRINT = f"mmrt-{__version__}"


TOKENS = Whole(-1, MOST)
ALTERNATIVES = Whole(0, 20)


def limit_tokens(asked: Asked, most: int | None) -> None:
    """Has texts end after so many tokens; None or -1: where the context does."""
    asked.options["max_tokens"] = None if most in (None, -1) else most


def note(answers: Answers) -> str:
    """For the access log."""
    texts = answers.texts
    return f"{texts.prompt_tokens} tokens ({texts.cached_tokens} cached) + {texts.tokens}"


def new_id(kind: str) -> str:
    """kind: with what its clients expect behind it: "resp_", "chatcmpl-"."""
    return f"{kind}{uuid.uuid4().hex}"


def usage(answers: Answers) -> dict[str, Any]:
    texts = answers.texts
    return {
        "prompt_tokens": texts.prompt_tokens,
        "completion_tokens": texts.tokens,
        "total_tokens": texts.prompt_tokens + texts.tokens,
        "prompt_tokens_details": {"cached_tokens": texts.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": answers.reasoning_tokens},
    }


def envelope(kind: str, object_: str, name: str, asked: Asked) -> dict[str, Any]:
    """What every chunk of a response begins with."""
    return {
        "id": new_id(kind),
        "object": object_,
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": FINGERPRINT,
        "service_tier": asked.tier,
    }


def token_odds(model: TextModel, token: int, drawn: Drawn) -> dict[str, Any]:
    """A token's log-probability, and those of the likeliest in its place."""
    one = _odds(model, token, drawn.logprob or 0.0)
    others = [_odds(model, other, logprob) for other, logprob in drawn.alternatives]
    return {**one, "top_logprobs": others}


def _odds(model: TextModel, token: int, logprob: float) -> dict[str, Any]:
    spelled = model.tokenizer.token_bytes(token)
    text = spelled.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(spelled)}


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI says this of what is never drawn."""
    return max(logprob, -9999.0)


def stream(chunks: AsyncIterator[dict[str, Any]], request: Request, answers: Answers) -> Response:
    """The response that sends `chunks` as they come; the texts end with it."""

    def end() -> None:
        request.note = note(answers)
        answers.texts.close()

    return Response(200, _events(chunks), sse.CONTENT_TYPE, list(sse.HEADERS), end)


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in chunks:
            yield sse.event(chunk)
        yield sse.DONE
    except Exception as error:  # the status was sent long ago
        yield sse.event(refused(error).body())
