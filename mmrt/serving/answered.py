"""What answers look like, in JSON Schema: tests hold what is answered to it."""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}


def _object(optional: dict[str, Schema] | None = None, /, **fields: Schema) -> Schema:
    """An object that has these fields; fields that nobody would look for may be beside them."""
    properties = {**fields, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(fields)}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _words(*words: str | None) -> Schema:
    return {"enum": list(words)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


OBJECT: Schema = {"type": "object"}
HEALTH = _object(status=_words("ok"))
MODEL = _object(
    id=_TEXT, object=_words("model"), created=_WHOLE, owned_by=_TEXT, max_model_len=_WHOLE
)
MODELS = _object(object=_words("list"), data=_list(MODEL))
TOKENS = _object(tokens=_list({}), count=_WHOLE, max_model_len=_WHOLE)
TEXT = _object(content=_TEXT, prompt=_TEXT)
PROMPT = _object(prompt=_TEXT)
COUNT = _object(input_tokens=_WHOLE)

# ---- OpenAI's chats and completions ----

_USAGE = _object(
    {
        "prompt_tokens_details": _object(cached_tokens=_WHOLE),
        "completion_tokens_details": _object(reasoning_tokens=_WHOLE),
    },
    prompt_tokens=_WHOLE,
    completion_tokens=_WHOLE,
    total_tokens=_WHOLE,
)
_REASON = _words("stop", "length", "tool_calls")
_CALLED = _object(name=_TEXT, arguments=_TEXT)
_CALL = _object(id=_TEXT, type=_words("function"), function=_CALLED)
_ODDS = _object(token=_TEXT, logprob=_NUMBER, bytes=_list(_WHOLE))
_LISTED = _object(content=_list(_object(**_ODDS["properties"], top_logprobs=_list(_ODDS))))
_MESSAGE = _object(
    {"reasoning_content": _TEXT, "tool_calls": _list(_CALL)},
    role=_words("assistant"),
    content=_or_null(_TEXT),
)
_DELTA = _object(
    {
        "role": _words("assistant"),
        "content": _TEXT,
        "reasoning_content": _TEXT,
        "tool_calls": _list(_object(index=_WHOLE, function=_object(arguments=_TEXT))),
    }
)
_HEAD = {
    "id": _TEXT,
    "created": _WHOLE,
    "model": _TEXT,
    "system_fingerprint": _TEXT,
    "service_tier": _words("default", "flex", "priority"),
}
_CHOICE = {"index": _WHOLE, "logprobs": _or_null(_LISTED)}

CHAT = _object(
    **_HEAD,
    object=_words("chat.completion"),
    choices=_list(_object(**_CHOICE, message=_MESSAGE, finish_reason=_REASON)),
    usage=_USAGE,
)
CHAT_CHUNK = _object(
    {"usage": _or_null(_USAGE)},
    **_HEAD,
    object=_words("chat.completion.chunk"),
    choices=_list(_object(**_CHOICE, delta=_DELTA, finish_reason=_or_null(_REASON))),
)
COMPLETION = _object(
    {"usage": _or_null(_USAGE)},
    **_HEAD,
    object=_words("text_completion"),
    choices=_list(
        _object(
            index=_WHOLE,
            text=_TEXT,
            finish_reason=_or_null(_REASON),
            logprobs=_or_null(
                _object(
                    tokens=_list(_TEXT),
                    token_logprobs=_list(_or_null(_NUMBER)),
                    top_logprobs=_list(_or_null({"type": "object"})),
                    text_offset=_list(_WHOLE),
                )
            ),
        )
    ),
)

# ---- OpenAI's responses ----

_ITEM = {
    "anyOf": [
        _object(
            type=_words("message"),
            id=_TEXT,
            status=_TEXT,
            role=_words("assistant"),
            content=_list(_object(type=_words("output_text"), text=_TEXT, annotations=_list({}))),
        ),
        _object(
            type=_words("reasoning"),
            id=_TEXT,
            summary=_list({}),
            content=_list(_object(type=_words("reasoning_text"), text=_TEXT)),
        ),
        _object(type=_words("function_call"), id=_TEXT, call_id=_TEXT, **_CALLED["properties"]),
    ]
}
RESPONSE = _object(
    id=_TEXT,
    object=_words("response"),
    created_at=_WHOLE,
    status=_words("completed", "incomplete", "failed"),
    error=_or_null(_object(code=_TEXT, message=_TEXT)),
    incomplete_details=_or_null(_object(reason=_TEXT)),
    model=_TEXT,
    output=_list(_ITEM),
    parallel_tool_calls=_FLAG,
    previous_response_id=_or_null(_TEXT),
    store=_FLAG,
    temperature=_NUMBER,
    top_p=_NUMBER,
    tools=_list(OBJECT),
    usage=_or_null(_object(input_tokens=_WHOLE, output_tokens=_WHOLE, total_tokens=_WHOLE)),
)
INPUT_TOKENS = _object(object=_words("response.input_tokens"), input_tokens=_WHOLE)
DELETED = _object(id=_TEXT, object=_words("response"), deleted=_FLAG)

# ---- Anthropic's messages ----

_BLOCK = {
    "anyOf": [
        _object(type=_words("text"), text=_TEXT),
        _object(type=_words("thinking"), thinking=_TEXT, signature=_TEXT),
        _object(type=_words("tool_use"), id=_TEXT, name=_TEXT, input=OBJECT),
    ]
}
MESSAGE = _object(
    id=_TEXT,
    type=_words("message"),
    role=_words("assistant"),
    model=_TEXT,
    content=_list(_BLOCK),
    stop_reason=_words("end_turn", "max_tokens", "stop_sequence", "tool_use"),
    stop_sequence=_or_null(_TEXT),
    usage=_object(
        input_tokens=_WHOLE,
        output_tokens=_WHOLE,
        cache_read_input_tokens=_WHOLE,
        cache_creation_input_tokens=_WHOLE,
    ),
)

# An event of a stream of responses or messages.
EVENT = _object(type=_TEXT)

ERRORS: Schema = {
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT))
    ),
    "MessagesError": _object(type=_words("error"), error=_object(type=_TEXT, message=_TEXT)),
}
