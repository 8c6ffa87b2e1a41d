"""A server in a thread of this process, and a plain client for it."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import tiny_models

import mmrt
from mmrt.serving.access import Access
from mmrt.serving.house import House, Served
from mmrt.serving.limits import Limits
from mmrt.serving.server import Server

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall them as <tool_call>:{% for t in tools %} {{ t.function "
    "| tojson }}{% endfor %}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}"
    "\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def write_speaker(path: Path, *says: bytes, template: str = TEMPLATE, **options: Any) -> Path:
    """A chat model that says this, whatever it is asked."""
    model = tiny_models.speaker(*says, **options)
    model.metadata["tokenizer.chat_template"] = template
    return model.write(path)


def write_talker(path: Path, template: str = TEMPLATE, **shape: Any) -> Path:
    """A chat model that says something else after each prompt."""
    model = tiny_models.llama(**{"type": "Q8_0", "context": 2048, **shape})
    model.metadata["tokenizer.chat_template"] = template
    return model.write(path)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """What a stream has told, without the end of OpenAI's."""
        found = []
        for block in self.body.decode().split("\n\n"):
            data = [line[6:] for line in block.splitlines() if line.startswith("data: ")]
            if data and data != ["[DONE]"]:
                found.append(json.loads("\n".join(data)))
        return found

    @property
    def error(self) -> Any:
        return self.json["error"]


class Running:
    """A server that runs."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.notes: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def served(self, name: str | None = None) -> Any:
        """A Served, of a Model."""
        return self.server.house.get(name)

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = self.connect()
        sent = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, sent, kind | (headers or {}))
            response = connection.getresponse()
            return Reply(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any = None, **fields: Any) -> Reply:
        return self.ask("POST", path, fields if body is None else body)

    def chat(self, text: str = "Hello", **fields: Any) -> Reply:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, "temperature": 0} | fields)


@contextmanager
def running(
    models: dict[str, Path],
    limits: Limits | None = None,
    access: Access | None = None,
    **engine: Any,
) -> Iterator[Running]:
    """Serves `models`; engine: arguments of Model.engine()."""
    limits = limits or Limits()
    notes: list[str] = []

    def load(house: House) -> None:
        for name, path in models.items():
            model = mmrt.Model(path, threads=2, exact=True)
            made = model.engine(**engine)
            house.add(Served(name, model, made, {"temperature": 0.0}, limits.queue))

    with serving(load, notes, limits=limits, access=access) as server:
        yield server


def client_of(server: Running) -> openai.OpenAI:
    """OpenAI's own, to be closed."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@contextmanager
def serving(load: Callable[[House], None], notes: list[str], **options: Any) -> Iterator[Running]:
    """Serves what `load` puts into a house."""
    came, ports = threading.Event(), list[int]()

    def started(addresses: list[tuple[str, int]]) -> None:
        ports.append(addresses[0][1])
        came.set()

    server = Server(load, note=notes.append, started=started, **options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failed.append(error)
        finally:
            came.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert came.wait(60)
        if failed:
            raise failed[0]
        found = Running(server, ports[0])
        found.notes = notes
        while found.get("/health").status == 503:
            pass
        yield found
    finally:
        server.stop()
        server.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert not failed, failed
