"""Models from a hub: huggingface-hub itself, and a hub of two repositories on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_models
from command import HOME

from mmrt import hub
from mmrt.errors import ArgumentError, UnsupportedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, SEVERAL = "someone/one", "someone/several"
FILES = {
    ONE: ["README.md", "mmproj-Q8_0.gguf", "tiny-Q4_K.gguf", "tiny-Q8_0.gguf"],
    SEVERAL: ["tiny-Q8_0-00001-of-00002.gguf", "tiny-Q8_0-00002-of-00002.gguf"],
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as fetching takes."""

    content = b""
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        for repository, names in FILES.items():
            if self.path.startswith(f"/api/models/{repository}"):
                if "/tree/" in self.path:
                    listed = [{"type": "file", "path": n, "size": 1, "oid": n} for n in names]
                    self._send(json.dumps(listed).encode())
                    return
                siblings = [{"rfilename": name} for name in names]
                about = {"id": repository, "modelId": repository, "sha": COMMIT}
                self._send(json.dumps(about | {"siblings": siblings}).encode())
                return
            if self.path.removeprefix(f"/{repository}/resolve/main/") in names:
                name = self.path.rpartition("/")[2]
                content = self.content if name == "tiny-Q8_0.gguf" else name.encode()
                self._send(content, ETag=f'"{name}"', **{"X-Repo-Commit": COMMIT})
                return
        self.send_error(404, headers={"X-Error-Code": "RepoNotFound"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None,
                   headers: dict[str, str] | None = None) -> None:  # fmt: skip
        self.send_response(code)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Here:
    """A process's environment with this hub, and a cache of its own."""

    def __init__(self, endpoint: str, cache: Path) -> None:
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def mmrt(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return self._run("-m", "mmrt", *words, **more)

    def path(self, *arguments: object, **more: str) -> str:
        """What hub.path() gives, or the error it ends with."""
        script = f"from mmrt import hub; print(hub.path(*{arguments}))"
        done = self._run("-c", script, **more)
        return (done.stdout or done.stderr).strip().splitlines()[-1]

    def _run(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=HOME,
            env=self.environment | more,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    model = tmp_path / "tiny.gguf"
    tiny_models.llama().write(model)
    Hub.content, Hub.asked = model.read_bytes(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Here(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    server.shutdown()
    thread.join()
    server.server_close()


def test_run_fetches_a_model_once_and_finds_it_offline(here: Here) -> None:
    command = ("run", "-hf", f"{ONE}:q8_0", "--raw", "-p", "a", "-n", "2")
    ended = here.mmrt(*command, "--temp", "0")
    assert ended.returncode == 0, ended.stderr
    n_asked = len(Hub.asked)
    assert [a for a in Hub.asked if a.startswith("GET") and a.endswith(".gguf")] == [
        f"GET /{ONE}/resolve/main/tiny-Q8_0.gguf"
    ]
    offline = here.mmrt(*command, "--temp", "0", HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, ended.stdout), offline.stderr
    assert len(Hub.asked) == n_asked


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_asked_once(here: Here) -> None:
    command = ("run", "-hf", ONE, "--raw", "-p", "a", "-n", "2", "--temp", "0")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    refused = here.mmrt(*command, **nowhere)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"mmrt: {ONE}: huggingface-hub cannot fetch it; it says: ")
    assert refused.stderr.count("\n") == 1, refused.stderr
    fetched = here.mmrt(*command)
    found = here.mmrt(*command, **nowhere)
    assert (found.returncode, found.stdout, found.stderr) == (0, fetched.stdout, "")


def test_of_a_model_in_parts_all_are_fetched(here: Here) -> None:
    first = Path(here.path(SEVERAL))
    assert first.name == FILES[SEVERAL][0]
    assert sorted(path.name for path in first.parent.iterdir()) == FILES[SEVERAL]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ONE, "Q5_K"), "there is no Q5_K; there are tiny-Q4_K.gguf, tiny-Q8_0.gguf"),
        ((ONE, None, "no.gguf"), "there is no no.gguf"),
        (("someone/nobody",), "huggingface-hub cannot fetch it; it says: "),
        (("noname",), "expected OWNER/NAME"),
    ],
)
def test_what_is_not_there_is_one_line(
    here: Here, arguments: tuple[str | None, ...], words: str
) -> None:
    assert words in here.path(*arguments)


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match="pip install huggingface-hub"):
        hub.path(ONE)


@pytest.mark.parametrize(
    ("quant", "file", "expected"),
    [
        (None, None, ["b-Q4_K_M.gguf"]),
        ("q4_k", None, ["a-Q4_K.gguf"]),
        ("BF16", None, ["c/b-BF16-00001-of-00002.gguf", "c/b-BF16-00002-of-00002.gguf"]),
        (None, "a-Q4_K.gguf", ["a-Q4_K.gguf"]),
    ],
)
def test_which_file_is_meant(quant: str | None, file: str | None, expected: list[str]) -> None:
    names = ["a-Q4_K.gguf", "b-Q4_K_M.gguf", "x.safetensors", "mmproj-Q4_K.gguf"]
    names += [f"c/b-BF16-0000{n}-of-00002.gguf" for n in (2, 1)]
    assert hub._files(names, ONE, quant, file) == expected
    with pytest.raises(ArgumentError, match="there is no Q3_K; there are"):
        hub._files(names, ONE, "Q3_K", None)
