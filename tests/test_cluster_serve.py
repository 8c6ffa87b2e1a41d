"""`mmrt serve --cluster`: HTTP before stages."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from command import call
from served import serving, write_talker
from stages import SECRET, serving_all

import mmrt
from mmrt.cli import serve

MESSAGES = [{"role": "user", "content": "Well?"}]
ASKED: Any = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("served") / "talker.gguf", n_layers=2)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return file


def test_answers_are_those_of_one_machine(path: Path, secret: Path, tmp_path: Path) -> None:
    """And all else that is told of a model, but for what each stage knows alone."""
    hosts = tmp_path / "hosts"
    with serving_all(path, [0, 1, 2], threads=1, exact=True) as places:
        hosts.write_text("\n".join(places))
        words = [str(path), "--cluster", str(hosts), "--secret-file", str(secret)]
        parser = argparse.ArgumentParser()
        serve.add_arguments(parser)
        arguments = parser.parse_args(words)
        with serving(lambda house: serve._load(house, {"": str(path)}, arguments), []) as server:
            reply = server.post("/v1/chat/completions", ASKED).json
            with mmrt.Model(path, exact=True) as model:
                wanted = model.chat(MESSAGES, max_tokens=12, temperature=0)
                weights = model.memory.weights
            assert reply["choices"][0]["message"]["content"] == wanted
            assert server.get("/v1/models").json["data"][0]["meta"]["size"] >= weights
            assert b"mmrt:kv_bytes" in server.get("/metrics").body
            memory = server.get("/sight").json["models"][0]["memory"]
            assert memory["kv"] % memory["kv_page"] == 0 < memory["kv"]
            asked = {"prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 1}
            assert server.post("/v1/completions", asked).status == 200


def test_what_is_refused(path: Path, secret: Path) -> None:
    command = ("serve", path, "--cluster", "hosts")
    call(*command).assert_refused(2, "--secret-file")
    call("serve", path, "--secret-file", secret).assert_refused(2, "--cluster")
    call("serve", path, "--cluster", "ray", "--secret-file", secret).assert_refused(2, "on Ray")
    whole = (*command, "--secret-file", secret)
    call(*whole, path.parent / "b.gguf").assert_refused(2, "one model, not 2")
    for option in (("-t", 2), ("--memory", "1GiB"), ("--kv-dir", "x"), ("--draft", "ngram")):
        call(*whole, *option).assert_refused(2, "is for `mmrt stage`")
    call(*whole, "--exact").assert_refused(2, "--exact")


def test_a_stage_that_is_not_reached(path: Path, secret: Path, tmp_path: Path) -> None:
    """The error tells of the stage, not of where the server listens."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1:1\n")
    whole = ("serve", path, "--port", 0, "--cluster", hosts, "--secret-file", secret)
    ended = call(*whole)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith("mmrt: 127.0.0.1:1: cannot connect: ")
