"""GET /health, /v1/models, /props and /sight: what this server is."""

from collections.abc import Iterable
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
            "size": model.memory.weights,
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


async def sight(desk: Desk, request: Request) -> Response:
    """What the page shows of all models: memory in bytes, texts, and defaults of sampling."""
    desk.house.get(None)
    models = list(desk.house.models.values())
    return json_response({"models": await desk.house.apart(_all_seen, models)})


def _all_seen(models: Iterable[Served]) -> list[dict[str, Any]]:
    return [_seen(served) for served in models]


def _seen(served: Served) -> dict[str, Any]:
    memory, live = served.model.memory, list(served.live)
    running = sum(handle.started is not None for handle in live)
    kinds = ("weights", "kept", "kv", "kv_logical", "kv_page", "scratch", "ring", "cache")
    return {
        "name": served.name,
        "context": served.model.context,
        "sampling": served.defaults,
        "texts": {"running": running, "waiting": len(live) - running},
        "memory": {
            **{kind: getattr(memory, kind) for kind in (*kinds, "columns", "budget")},
            "kv_copies": served.model.store.sharing.copies,
        },
    }
