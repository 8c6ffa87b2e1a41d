"""What strangers wrote, as a terminal gets it."""

import subprocess
from pathlib import Path

import pytest
import tiny_models
from command import await_text, call, start

EVIL = b"a\xe3\x80\x80\x1b]0;owned\x07\r\xc2\x9b2J\xe2\x80\xae\tb\n\xe2\x80\x8d\xd7\xa9"
TAMED = "a\u3000" + r"\x1b]0;owned\x07\r\x9b2J\u202e" + "\tb\n\u200d\u05e9"


@pytest.fixture
def evil_path(tmp_path: Path) -> Path:
    """A model that says what would steer a terminal, and whose template refuses with it."""
    made = tiny_models.speaker(EVIL)
    refusal = b"no\\x1b[2J\\n\\x9b\\u202e".decode("unicode-escape")
    made.metadata["tokenizer.chat_template"] = (
        "{{ raise_exception('REFUSAL') if messages[0].content == 'no' else messages[0].content }}"
    ).replace("REFUSAL", refusal)
    return made.write(tmp_path / "evil.gguf")


def test_a_pipe_gets_the_text_as_it_is(evil_path: Path) -> None:
    text = EVIL.decode().replace("\r", "\n")  # as call() reads
    assert call("run", evil_path, "ab", "--raw").out == text + "\n"
    assert call("chat", evil_path, stdin="ab").out == text + "\n"


@pytest.mark.parametrize("command", ["run", "chat"])
def test_no_text_of_a_model_steers_a_terminal(
    evil_path: Path, terminal: tuple[int, int], command: str
) -> None:
    ours, theirs = terminal
    prompt = ["--raw", "ab"] if command == "run" else []
    process = start(command, evil_path, *prompt, stdin=subprocess.PIPE, stdout=theirs)
    process.communicate("ab\n")
    written = await_text(ours, "\u05e9".encode()).decode().replace("\r\n", "\n")
    assert written.rstrip("\n").endswith(TAMED)
    assert process.returncode == 0


def test_what_a_template_refuses_with_is_one_printable_line(evil_path: Path) -> None:
    ended = call("chat", evil_path, stdin="no")
    ended.assert_refused(1, r"refuses: no\x1b[2J \x9b\u202e")
    assert ended.err.removesuffix("\n").isprintable()


def test_a_prompt_that_is_not_utf8_is_refused(evil_path: Path) -> None:
    words = ("the text is not UTF-8: byte 0xff at character 2",)
    call("run", evil_path, "-", stdin=b"ab\xff").assert_refused(1, *words)
    call("run", evil_path, "ab\udcff").assert_refused(1, *words)
    call("chat", evil_path, stdin=b"ab\xff").assert_refused(1, *words)
