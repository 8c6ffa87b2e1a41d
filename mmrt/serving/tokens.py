"""POST /tokenize, /detokenize and /apply-template: what texts and chats are to a model."""

from typing import Any

from mmrt.serving import messages, tools
from mmrt.serving.asking import MOST
from mmrt.serving.desk import Desk, chat_prompt, chat_text
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response, json_response
from mmrt.serving.kinds import Flag, Kind, List, Record, Text, Whole
from mmrt.serving.limits import Limits
from mmrt.serving.messages import read_messages, read_template_variables
from mmrt.serving.problems import Refused
from mmrt.serving.tools import read_tools


def declare_chat(limits: Limits) -> Record:
    return Record(_chat(limits), ("messages",))


def _chat(limits: Limits) -> dict[str, Kind]:
    return {"model": Text(), **messages.declare(limits), **tools.declare(limits)}


def declare_text(limits: Limits) -> Record:
    texts, flags = ("content", "prompt"), ("parse_special", "add_special_tokens", "add_special")
    own: dict[str, Kind] = dict.fromkeys(texts, Text())
    own |= dict.fromkeys((*flags, "with_pieces"), Flag())
    return Record(_chat(limits) | own)


def declare_ids(limits: Limits) -> Record:
    return Record({"model": Text(), "tokens": List(Whole(0, MOST))}, ("tokens",))


async def tokenize(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare_text)
    if fields.has("messages"):
        chat = read_messages(fields), read_tools(fields).offered
        variables = read_template_variables(fields)
        variables = {**served.variables, **variables}
        prompt = await desk.house.apart(chat_prompt, served.model, *chat, variables)
        ids = prompt.ids
    else:
        # llama-server's field and vLLM's, each with what it adds where a request says nothing.
        names = [name for name in ("content", "prompt") if fields.has(name)]
        if len(names) != 1:
            raise Refused(400, "content or prompt: one of them has to be there", param="content")
        text, parse = fields.get(names[0]), fields.get("parse_special", True)
        special = fields.get("add_special_tokens", names[0] == "prompt")
        special = fields.get("add_special", special)
        ids = await desk.house.apart(served.model.tokenize, text, special, parse)
    tokens: list[Any] = list(ids)
    if fields.get("with_pieces"):
        tokens = [{"id": one, "piece": _piece(served, one)} for one in ids]
    return json_response(
        {"tokens": tokens, "count": len(ids), "max_model_len": served.model.context}
    )


def _piece(served: Served, token: int) -> Any:
    """The token's text, or its bytes where they are only a part of a character."""
    spelled = served.model.tokenizer.token_bytes(token)
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return list(spelled)


async def detokenize(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare_ids)
    ids, most = fields.get("tokens"), served.model.vocab_size
    if any(one >= most for one in ids):
        raise fields.bad("tokens", f"a list of token ids below {most}")
    text = await desk.house.apart(served.model.detokenize, ids)
    return json_response({"content": text, "prompt": text})


async def apply_template(desk: Desk, request: Request) -> Response:
    fields, served = await desk.read(request, declare_chat)
    chat = read_messages(fields), read_tools(fields).offered
    variables = {**served.variables, **read_template_variables(fields)}
    text = await desk.house.apart(chat_text, served.model, *chat, variables)
    return json_response({"prompt": text})
