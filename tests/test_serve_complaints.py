"""What users of other servers complain of: docs/serve.md lists it, and these tests hold the part
that others do not."""

import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from served import TEMPLATE, TOOLS_TEMPLATE, Running, running, write_speaker, write_talker

LISTED = (ROOT / "docs/serve.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    models = {
        "talker": write_talker(folder / "t.gguf", context=1 << 14),
        "tools": write_speaker(folder / "s.gguf", b"ab", template=TOOLS_TEMPLATE, context=1 << 16),
    }
    with running(models, max_gap=0.05) as found:
        yield found


def cached(reply: Any) -> tuple[int, int]:
    """Tokens of the prompt that were in memory, and those that were not."""
    usage = reply["usage"]
    found = int(usage["prompt_tokens_details"]["cached_tokens"])
    return found, int(usage["prompt_tokens"]) - found


def test_the_list_is_whole_and_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (\d+) \|", LISTED, re.M)
    assert [int(row) for row in rows] == list(range(1, 26))
    for file, test in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", LISTED):
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in text, (file, test)


def test_five_conversations_in_turn_are_all_found(server: Running) -> None:
    talks = [[{"role": "user", "content": f"{i} " + "ab" * 60}] for i in range(5)]
    for turn in range(4):
        for talk in talks:
            reply = server.post("/v1/chat/completions", messages=talk, max_tokens=8).json
            found, new = cached(reply)
            assert turn == 0 or new <= 8 + 32 + 30, (turn, found, new)
            answer = reply["choices"][0]["message"]["content"]
            talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]


def test_conversations_are_never_mixed_up(server: Running) -> None:
    """What begins like others, at random, is answered as where nothing is in memory."""
    draw = random.Random(1)
    words = ["ab", "ba", "cc", "a b", "c"]
    texts = ["".join(draw.choices(words, k=40))]
    for _ in range(20):
        other = draw.choice(texts)
        cut = draw.randrange(len(other))
        texts.append(other[:cut] + "".join(draw.choices(words, k=20)))

    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 1.0, "seed": 3}

    def answers(salt: bool) -> list[str]:
        return [
            server.chat(text, cache_salt=str(i) if salt else "", **fields).body.decode()
            for i, text in enumerate(texts)
        ]

    def said(bodies: list[str]) -> list[str]:
        return [json.loads(body)["choices"][0]["message"]["content"] for body in bodies]

    cold, warm = said(answers(salt=True)), said(answers(salt=False))
    assert cold == warm and len(set(cold)) > 10


def test_a_stream_goes_on_beside_a_long_prompt(server: Running) -> None:
    engine = server.served().engine
    prompt = {"prompt": [5 + i % 90 for i in range(9000)], "max_tokens": 1}
    reader = threading.Thread(target=lambda: server.post("/v1/completions", prompt))
    stream = server.connect()
    asked = {"prompt": "ab", "stream": True, "max_tokens": 5000, "ignore_eos": True}
    stream.request(
        "POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"}
    )
    response = stream.getresponse()
    assert response.readline()
    before = engine.evaluated_tokens
    reader.start()
    lines = 0
    while engine.evaluated_tokens - before - lines < 8000:  # until most of the prompt is read
        lines += response.readline().startswith(b"data: ")
    assert lines >= 2  # it was not read in one step
    stream.close()
    reader.join()


def test_many_tools(server: Running) -> None:
    properties = {f"field_{i}": {"type": "string", "description": "x" * 50} for i in range(25)}
    parameters = {"type": "object", "properties": properties}
    tools = [
        {"type": "function", "function": {"name": f"tool_{i}", "parameters": parameters}}
        for i in range(60)
    ]
    assert len(json.dumps(tools)) > 100_000
    reply = server.chat(model="tools", tools=tools)
    assert reply.status in (200, 400), reply
    if reply.status == 400:  # the tiny vocabulary makes it longer than the context
        assert reply.error["code"] == "context_length_exceeded"
    few = server.chat(model="tools", tools=[{**tool} for tool in tools[:9]])
    assert few.status == 200, few


def test_reasoning_that_is_left_out_costs_the_last_answer_alone(tmp_path: Path) -> None:
    template = TEMPLATE + "{# <think> </think> #}"
    says = [b"<think>", b"hm ", b"</think>", b"Yes"]
    path = write_speaker(tmp_path / "h.gguf", *says, template=template, context=2048)
    with running({"thinker": path}) as server:
        talk: list[Any] = [{"role": "user", "content": "ab" * 100}]
        read = 0
        for _ in range(4):
            reply = server.post("/v1/chat/completions", messages=talk).json
            found, _ = cached(reply)
            assert found >= read
            read = reply["usage"]["prompt_tokens"]
            message = reply["choices"][0]["message"]
            assert message["reasoning_content"]
            talk += [{"role": "assistant", "content": message["content"]}]
            talk += [{"role": "user", "content": "And?"}]


def test_answers_are_the_same_cold_warm_and_together(server: Running) -> None:
    """The model is exact."""
    asked = [f"{i}" + "abc" * i for i in range(8)]
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0, "seed": 7}

    def said(text: str, **more: Any) -> str:
        return str(server.chat(text, **fields, **more).json["choices"][0]["message"]["content"])

    cold = [said(text, cache_salt=f"cold {text}") for text in asked]
    warm = [said(text) for text in [*asked, *asked]][len(asked) :]
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda text=text: together.update({text: said(text)}))
        for text in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cold == warm == [together[text] for text in asked]


def test_there_are_no_embeddings(server: Running) -> None:
    assert server.post("/v1/embeddings", input="x").status == 404


FIELDS = [
    *("messages", "prompt", "input", "model", "max_tokens", "temperature", "stop", "tools", "n"),
    *("stream", "logit_bias", "response_format", "logprobs", "tool_choice", "system", "tokens"),
    *("content", "seed", "chat_template_kwargs", "stream_options", "text", "reasoning", "echo"),
]


def test_random_bodies_are_never_the_servers_fault(server: Running) -> None:
    draw = random.Random(5)

    def value(depth: int = 0) -> Any:
        kinds: list[Any] = [None, True, 0, -1, 1.5, 2**70, "", "x", "\x00", "<|im_end|>", [], {}]
        if depth < 3 and draw.random() < 0.5:
            keys = ["role", "content", "type", "text", "function", "name", "schema", "id"]
            if draw.random() < 0.5:
                return [value(depth + 1) for _ in range(draw.randrange(3))]
            return {draw.choice(keys): value(depth + 1) for _ in range(draw.randrange(4))}
        return draw.choice(kinds)

    paths = [
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/tokenize", "/detokenize", "/apply-template"),
    ]
    good = {
        "messages": [{"role": "user", "content": "x"}],
        "prompt": "x",
        "input": "x",
        "max_tokens": 2,
        "max_output_tokens": 2,
    }
    for _ in range(300):
        body = {**good, **{draw.choice(FIELDS): value() for _ in range(draw.randrange(1, 3))}}
        body["max_completion_tokens"] = 2
        reply = server.post(draw.choice(paths), body)
        assert reply.status in (200, 400, 404, 429), (body, reply)
    assert not [note for note in server.notes if "error" in note]
