"""What a server refuses, and how it says so: an HTTP status, and an error in OpenAI's form."""

from typing import Any

from mmrt.errors import (
    ArgumentError,
    InUseError,
    MmrtError,
    OutOfMemoryError,
    UnsupportedError,
)

# The `type` of an error where nothing else is said.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "permission_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    501: "not_supported_error",
    503: "overloaded_error",
}


class Refused(Exception):
    """A request that is answered with an error.

    param: the field at fault. code: a word for programs. headers: of the response, beside the usual
    ones. extra: fields of the error beyond OpenAI's.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type or _TYPES.get(status, "server_error")
        self.headers = headers
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.extra}


def refused(error: BaseException) -> Refused:
    """What is answered where `error` was raised on the way to an answer."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OutOfMemoryError):
        return Refused(503, str(error), code="out_of_memory", headers=(("Retry-After", "5"),))
    if isinstance(error, InUseError):
        return busy(1)
    if isinstance(error, ArgumentError | UnsupportedError):
        return Refused(400, str(error))
    if isinstance(error, MmrtError):
        return Refused(500, str(error))
    return Refused(500, "the server failed over this request")


def busy(seconds: int) -> Refused:
    """There is no room for one more; there may be in so many seconds."""
    return Refused(
        429,
        f"too many requests are under way: try again in {seconds} s",
        code="rate_limit_exceeded",
        headers=(("Retry-After", str(seconds)),),
    )


def too_long(n_prompt: int, context: int, at_least: str = "") -> Refused:
    """A prompt that the model's context cannot hold, as clients of OpenAI and of llama-server
    recognise it."""
    return Refused(
        400,
        f"the prompt has {at_least}{n_prompt} tokens, which leaves no room for an answer in the "
        f"context of {context}",
        param="messages",
        code="context_length_exceeded",
        type="exceed_context_size_error",
        n_prompt_tokens=n_prompt,
        n_ctx=context,
    )
