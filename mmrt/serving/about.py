"""GET /health, /v1/models and /props: what this server is."""

from typing import Any

from mmrt import __version__
from mmrt.serving.desk import Desk
from mmrt.serving.house import Served
from mmrt.serving.http import Request, Response, json_response

MODELS = "/v1/models"


async def health(desk: Desk, request: Request) -> Response:
    desk.house.get(None)
    return json_response({"status": "ok"})


async def models(desk: Desk, request: Request) -> Response:
    """All of them, or the one that the path names."""
    name = request.path.removeprefix(MODELS).strip("/")
    if name:
        return json_response(_describe(desk.house.get(name)))
    desk.house.get(None)
    described = [_describe(served) for served in desk.house.models.values()]
    return json_response({"object": "list", "data": described})


def _describe(served: Served) -> dict[str, Any]:
    model = served.model
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "mmrt",
        "max_model_len": model.context,
        "meta": {
            "n_ctx": model.context,
            "n_vocab": model.vocab_size,
            "size": sum(tensor.nbytes for tensor in model.program.weights),
        },
    }


async def props(desk: Desk, request: Request) -> Response:
    served = desk.house.get(None)
    model, tokenizer = served.model, served.model.tokenizer

    def text_of(token: int | None) -> str:
        return "" if token is None else model.detokenize([token])

    return json_response(
        {
            "default_generation_settings": {"n_ctx": model.context, "params": served.defaults},
            "total_slots": desk.limits.queue,
            "model_alias": served.name,
            "chat_template": model.chat_template or "",
            "bos_token": text_of(tokenizer.bos_id),
            "eos_token": text_of(tokenizer.eos_id),
            "modalities": {"vision": False, "audio": False},
            "build_info": f"mmrt {__version__}",
        }
    )
