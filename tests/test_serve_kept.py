"""The server's responses that are kept, and those that go on from them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from served import TOOLS_TEMPLATE, Running, client_of, running, write_speaker, write_talker
from test_serve_anthropic import CALL, THINKS
from test_serve_limits import open_socket, raw, until

from mmrt.serving.access import Access
from mmrt.serving.kept import Kept, Shelf, size_of
from mmrt.serving.limits import Limits

TOOLS: Any = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    says = [text.encode() for text in CALL]
    thoughts = [b"<think>", b"Hm.", b"</think>", b"Yes"]
    models = {
        "talker": write_talker(folder / "t.gguf"),
        "caller": write_speaker(folder / "c.gguf", *says, template=TOOLS_TEMPLATE, context=2048),
        "thinker": write_speaker(folder / "h.gguf", *thoughts, template=THINKS),
    }
    with running(models) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def test_turns_go_on_as_if_all_were_sent_again(client: Any) -> None:
    items: list[Any] = []
    last, read = None, 0
    for question in ("Who?", "ab" * 40, "And then?"):
        asked: dict[str, Any] = {"model": "talker", "max_output_tokens": 12}
        items.append({"role": "user", "content": question})
        response = client.responses.create(input=question, previous_response_id=last, **asked)
        whole = client.responses.create(input=items, store=False, **asked)
        assert response.output_text == whole.output_text
        assert response.usage.input_tokens == whole.usage.input_tokens
        assert response.previous_response_id == last and response.store and not whole.store
        assert response.usage.input_tokens_details.cached_tokens >= read - 8
        last, read = response.id, response.usage.input_tokens
        items += [item.model_dump(exclude_none=True) for item in response.output]


def test_branches_go_on_from_one_response(client: Any) -> None:
    first = client.responses.create(model="talker", input="x", max_output_tokens=4)
    asked: dict[str, Any] = {"previous_response_id": first.id, "max_output_tokens": 9}
    one = client.responses.create(model="talker", input="a", **asked)
    other = client.responses.create(model="talker", input="bb", **asked)
    again = client.responses.create(model="talker", input="a", **asked)
    assert one.output_text == again.output_text
    assert other.usage.input_tokens == one.usage.input_tokens + 1


def test_instructions_are_those_of_the_request(server: Running, client: Any) -> None:
    def tokens(**fields: Any) -> int:
        reply = client.responses.create(model="talker", input="x", max_output_tokens=1, **fields)
        last["id"] = reply.id
        return int(reply.usage.input_tokens)

    last: dict[str, str] = {}
    plain = tokens()
    bare = tokens(previous_response_id=last["id"])
    assert tokens(instructions="Be brief.") > plain
    assert tokens(previous_response_id=last["id"]) == bare  # what was told then is told no more


def test_calls_of_tools_and_reasoning_go_along(server: Running, client: Any) -> None:
    asked: dict[str, Any] = {"model": "caller", "tools": TOOLS}
    first = client.responses.create(input="How?", **asked)
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Fine"}
    second = client.responses.create(input=[result], previous_response_id=first.id, **asked)
    said = [item.model_dump(exclude_none=True) for item in first.output]
    question = {"role": "user", "content": "How?"}
    whole = client.responses.create(input=[question, *said, result], **asked)
    assert second.usage.input_tokens == whole.usage.input_tokens
    thinks = client.responses.create(model="thinker", input="x")
    assert thinks.output[0].type == "reasoning"
    more = client.responses.create(model="thinker", input="y", previous_response_id=thinks.id)
    assert more.output_text == "Yes"


def test_a_stream_is_kept_before_its_end_is_told(server: Running, client: Any) -> None:
    for most in (3, None):  # cut, and whole
        asked = {"model": "thinker", "input": "x", "stream": True, "max_output_tokens": most}
        for event in client.responses.create(**asked):
            if event.type in ("response.completed", "response.incomplete"):
                kept = client.responses.retrieve(event.response.id)
                assert kept == event.response


def test_responses_are_told_again_and_deleted(server: Running, client: Any) -> None:
    response = client.responses.create(model="talker", input="x", max_output_tokens=3)
    assert client.responses.retrieve(response.id) == response
    reply = server.ask("DELETE", f"/v1/responses/{response.id}")
    assert reply.json == {"id": response.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(response.id)
    assert server.post(f"/v1/responses/{response.id}", {}).status == 405


def test_the_length_of_a_prompt(client: Any) -> None:
    def count(**asked: Any) -> tuple[int, int]:
        counted = client.responses.input_tokens.count(model="talker", **asked)
        response = client.responses.create(model="talker", max_output_tokens=2, **asked)
        return counted.input_tokens, response.usage.input_tokens

    first = client.responses.create(model="talker", input="Hello", max_output_tokens=2)
    follow = {"input": "And?", "previous_response_id": first.id, "instructions": "Be brief."}
    asked: dict[str, Any]
    for asked in ({"input": "Hello"}, follow):
        counted, used = count(**asked)
        assert counted == used > 0


def test_what_is_not_kept_is_not_gone_on_from(server: Running, client: Any) -> None:
    before = len(server.server.desk.kept)
    response = client.responses.create(model="talker", input="x", store=False, max_output_tokens=2)
    assert not response.store and len(server.server.desk.kept) == before
    for identity in (response.id, "resp_1", "../x", "\ud800"):
        body = {"input": "x", "previous_response_id": identity}
        refused = server.post("/v1/responses", body)
        assert refused.status == 400 and refused.error["code"] == "previous_response_not_found"
        assert refused.error["param"] == "previous_response_id"
    wrongs: list[Any] = [5, ["x"], {}]
    for wrong in wrongs:
        reply = server.post("/v1/responses", {"input": "x", "previous_response_id": wrong})
        assert reply.status == 400 and "previous_response_id" in reply.error["param"]
    assert server.get("/v1/responses/resp_1").status == 404


def test_a_client_that_leaves_has_nothing_kept(server: Running) -> None:
    before = len(server.server.desk.kept)
    connection = open_socket(server)
    body = {"model": "talker", "input": "x", "stream": True, "ignore_eos": True}
    connection.sendall(raw("/v1/responses", json.dumps(body).encode()))
    assert connection.recv(200).startswith(b"HTTP/1.1 200 ")
    connection.close()
    until(lambda: server.served("talker").under_way == 0)
    assert len(server.server.desk.kept) == before


def test_keys_see_their_own(tmp_path: Any) -> None:
    access = Access(["a", "b"])
    with running({"s": write_speaker(tmp_path / "s.gguf", b"Yes")}, access=access) as server:

        def ask(key: str, method: str, path: str, body: Any = None) -> Any:
            return server.ask(method, path, body, {"Authorization": f"Bearer {key}"})

        identity = ask("a", "POST", "/v1/responses", {"input": "x"}).json["id"]
        path = f"/v1/responses/{identity}"
        follow = {"input": "y", "previous_response_id": identity}
        assert ask("b", "GET", path).status == ask("b", "DELETE", path).status == 404
        assert ask("b", "POST", "/v1/responses", follow).status == 400
        assert ask("a", "POST", "/v1/responses", follow).status == 200
        assert ask("a", "DELETE", path).status == 200


def test_too_many_messages_together(tmp_path: Any) -> None:
    path = write_speaker(tmp_path / "s.gguf", b"Yes")
    with running({"s": path}, replace(Limits(), messages=4)) as server:
        first = server.post("/v1/responses", input=[{"role": "user", "content": "x"}] * 3)
        body = {"input": "y", "previous_response_id": first.json["id"]}
        refused = server.post("/v1/responses", body)
        assert refused.status == 400 and "5 items" in refused.error["message"]


# ---- the shelf ----


def kept(name: str, text: str = "", owner: str = "") -> Kept:
    response = {"id": name, "output": text}
    return Kept(owner, response, [], size_of(response, []))


def test_what_was_not_asked_for_for_longest_goes() -> None:
    shelf = Shelf(replace(Limits(), kept=3))
    for name in "abc":
        shelf.put(kept(name))
    assert shelf.get("a", "") is not None
    shelf.put(kept("d"))
    assert [name for name in "abcd" if shelf.get(name, "")] == ["a", "c", "d"]
    assert shelf.get("a", "other") is None and not shelf.remove("a", "other")
    assert shelf.remove("a", "") and not shelf.remove("a", "") and len(shelf) == 2


def test_bytes_are_bounded() -> None:
    one = kept("a", "ä" * 1000)
    assert one.n_bytes > 2000
    shelf = Shelf(replace(Limits(), kept_bytes=3 * one.n_bytes))
    for name in "abcdef":
        shelf.put(kept(name, "ä" * 1000))
        assert shelf.n_bytes <= 3 * one.n_bytes
    assert len(shelf) == 3
    shelf.put(kept("g", "ä" * 4000))  # too large: the others stay
    assert shelf.get("g", "") is None and len(shelf) == 3
    for name in "def":
        assert shelf.remove(name, "")
    assert shelf.n_bytes == 0


@pytest.mark.parametrize("limits", [{"kept": 0}, {"kept_bytes": 10}])
def test_nothing_may_be_kept(limits: dict[str, int]) -> None:
    shelf = Shelf(replace(Limits(), **limits))
    shelf.put(kept("a"))
    assert len(shelf) == 0 == shelf.n_bytes
