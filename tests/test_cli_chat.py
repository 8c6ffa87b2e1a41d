"""`mmrt chat`: turns, commands, and what a terminal adds."""

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command import HOME, await_text, call, start

import mmrt
from mmrt.cli import history
from mmrt.run.generation import Piece

GREEDY = ("--temp", 0)

# A template that repeats what was said last, so that the prompt can be counted.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"

# ---- piped ----


@pytest.mark.slow
def test_chat_takes_piped_lines_as_turns(smollm2_path: Path) -> None:
    lines = "My name is Zork.\n\nWhat is my name?\n/clear\nWhat is my name?\n/exit\nHello?\n"
    ended = call("chat", smollm2_path, "-n", 8, *GREEDY, stdin=lines)
    assert ended.status == 0
    _, second, third = ended.out.strip().split("\n")
    assert "Zork" in second
    assert "Zork" not in third


@pytest.mark.slow
def test_chat_answers_as_the_model_does(smollm2_path: Path) -> None:
    told = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Hello!"}]
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    with mmrt.Model(smollm2_path) as model:
        expected = model.chat(told, max_tokens=8, seed=5, **options)
    ended = call(
        "chat", smollm2_path, "-n", 8, "-s", 5, "--system", "Speak French.", stdin="Hello!"
    )
    assert ended.out.rstrip("\n") == expected
    assert ended.err == "mmrt: cut at 8 tokens: -n 16 allows more, -n -1 any number\n"


def test_chat_knows_its_commands(smollm2_path: Path) -> None:
    ended = call("chat", smollm2_path, stdin="/help\n/fly\n/Set-2\n/\n/bye\nHello!\n")
    assert "/clear" in ended.out
    assert ended.err.splitlines() == [
        f"mmrt: no command {word}: there are /retry, /undo, /system, /save, /load, /clear, /help, "
        "/exit"
        for word in ("/fly", "/Set-2", "/")
    ]


def heard(tmp_path: Path, piped: str, *options: object) -> tuple[list[list[str]], list[str]]:
    """The messages that each answer was given to, "u:a" for what the user has said, and notes."""
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.chat_template"] = PLAIN
    path, log = made.write(tmp_path / "chat.gguf"), []
    save = str(tmp_path / "log.json")
    lines: list[str] = []
    for line in piped.splitlines():
        lines += [line, f"/save {save}.{len(lines)}"]
    ended = call("chat", path, *options, stdin="\n".join(lines))
    assert ended.status == 0
    for i in range(0, len(lines), 2):
        messages = json.loads(Path(f"{save}.{i}").read_text())["messages"]
        log.append([f"{message['role'][0]}:{message['content']}" for message in messages])
    notes = [line for line in ended.err.splitlines() if "log.json" not in line]
    return log, notes


def test_undo_and_retry(tmp_path: Path) -> None:
    log, notes = heard(tmp_path, "/undo\na\nb\n/retry\n/undo\n/retry\n/undo\n/undo\n/undo now\n")
    a, b = ["u:a", "a:ok"], ["u:b", "a:ok"]
    undo_now = ["u:/undo now", "a:ok"]  # no command takes words that it has no use for
    assert log == [[], a, a + b, a + b, a, a, [], [], undo_now]
    assert notes == ["mmrt: there is no question yet"] * 2


def test_what_the_model_is_told_changes(tmp_path: Path) -> None:
    log, notes = heard(
        tmp_path, "a\n/system  Be brief. \nb\n/clear\n/system\nc\n", "-sys", "Be kind."
    )
    a, b, c = (["u:" + word, "a:ok"] for word in "abc")
    brief = "s:Be brief."
    assert log == [["s:Be kind.", *a], [brief, *a], [brief, *a, *b], [brief], [], c]
    assert not notes


def test_conversations_are_saved_and_loaded(tmp_path: Path) -> None:
    model = tmp_path / "chat.gguf"
    kept = tmp_path / "a talk.json"
    (tmp_path / "other.json").write_text('{"messages": [{"role": "user"}]}')
    log, notes = heard(
        tmp_path,
        f"a\n/save {kept}\n/clear\n/load {kept}\nb\n/load {tmp_path / 'other.json'}\n"
        f"/load {tmp_path / 'none'}\n/save {model}\n/save\n/load /dev/zero\n/save a\0b\n",
    )
    a, b = ["u:a", "a:ok"], ["u:b", "a:ok"]
    assert log == [a, a, [], a, *[a + b] * 7]
    assert [note.removeprefix("mmrt: ") for note in notes] == [
        f"2 messages are in {kept}",
        f"2 messages from {kept}",
        f"{tmp_path / 'other.json'}: no conversation: expected JSON with `messages`",
        f"{tmp_path / 'none'}: No such file or directory",
        f"{model}: no conversation: expected JSON with `messages`",
        "/save needs the name of a file",
        "/dev/zero: no conversation: no file, or more than 64 MiB",
        "the name of a file has no NUL in it",
    ]
    assert model.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("piped", "said"),
    [
        ("/usr/bin is a folder of what?\n", ["/usr/bin is a folder of what?"]),
        ("  indented\n", ["  indented"]),
        ('"""\ndef f(x):\n    return x\n"""\nNext\n', ["def f(x):\n    return x", "Next"]),
        ('"""one line"""\n', ["one line"]),
        ('"""/clear"""\n', ["/clear"]),
        ('"""unfinished\nbut whole', ["unfinished\nbut whole"]),
        ('""""""\n\n  \n', []),
    ],
)
def test_what_is_a_message(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, piped: str, said: list[str]
) -> None:
    asked = []

    def stream(self: object, text: str, **options: object) -> Iterator[Piece]:
        asked.append(text)
        yield Piece("Yes.", None, "stop")

    monkeypatch.setattr("mmrt.run.conversation.Conversation.stream", stream)
    ended = call("chat", smollm2_path, stdin=piped)
    assert (ended.status, ended.err, asked) == (0, "", said)
    assert ended.out == "Yes.\n" * len(said)


@pytest.mark.slow
def test_the_oldest_turns_leave_a_full_context(smollm2_path: Path) -> None:
    numbers = [f"Day {n} has the number {n * 111}. Now the next one, please." for n in (1, 2, 3, 4)]
    ended = call(
        "chat", smollm2_path, "-c", 120, "-n", 16, "--system", "Count.", *GREEDY,
        stdin="\n".join(numbers),
    )  # fmt: skip
    assert ended.status == 0
    assert len(ended.out.strip().splitlines()) >= 4
    notes = [line for line in ended.err.splitlines() if "is full" in line]
    assert notes and all("the oldest" in line and "context of 120" in line for line in notes)
    # What is left is a conversation that begins with the system message.
    with mmrt.Model(smollm2_path, context=120) as model:
        last = model.chat(
            [{"role": "system", "content": "Count."}, {"role": "user", "content": numbers[3]}],
            max_tokens=16,
        )
    lone = call(
        "chat", smollm2_path, "-c", 76, "-n", 16, "--system", "Count.", *GREEDY,
        stdin="\n".join(numbers),
    )  # fmt: skip
    assert lone.out.rstrip("\n").endswith(last)


def test_a_message_larger_than_the_context_is_refused(smollm2_path: Path) -> None:
    call("chat", smollm2_path, "-c", 64, stdin="word " * 100).assert_refused(1, "context of 64")


@pytest.mark.slow
def test_a_message_that_is_refused_leaves_the_conversation_as_it_was(smollm2_path: Path) -> None:
    options = ("chat", smollm2_path, "-c", 120, "-n", 8, *GREEDY)
    name, question = "My name is Zork.\n", "What is my name?\n"
    ended = call(*options, stdin=name + "word " * 200 + "\n" + question)
    assert ended.status == 1
    assert ended.out == call(*options, stdin=name + question).out
    said = [line for line in ended.err.splitlines() if "cut at 8" not in line]
    assert said == [
        "mmrt: 230 tokens are more than the context of 120: the message is not part of the "
        "conversation"
    ]


def test_a_template_that_fails_in_a_later_turn_does_not_end_the_chat(tmp_path: Path) -> None:
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.chat_template"] = (
        "{% for m in messages %}{{ m.content if m.content != 'bad' else 1 // 0 }}{% endfor %}"
    )
    path = made.write(tmp_path / "chat.gguf")
    ended = call("chat", path, stdin="a\nbad\nb\n")
    assert (ended.status, ended.out) == (1, "ok\nok\n")
    assert "failed: ZeroDivisionError" in ended.err and ended.err.count("\n") == 1
    assert ended.err.endswith(": the message is not part of the conversation\n")


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_template_that_gives_nothing_is_said_to(tmp_path: Path, command: str) -> None:
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.chat_template"] = "{% if 0 %}{{ messages }}{% endif %}\n"
    path = made.write(tmp_path / "chat.gguf")
    prompt = ["-p", "a"] if command == "run" else []
    call(command, path, *prompt, stdin="a").assert_refused(
        1, "chat.gguf: the chat template gives no text for these messages"
    )


@pytest.mark.slow
def test_the_seed_is_of_a_whole_chat(smollm2_path: Path) -> None:
    options = ("chat", smollm2_path, "-n", 12, "--temp", 3, "--min-p", 0, "--top-k", 0)
    first = call(*options, "-s", 5, stdin="Hello!").out
    both = call(*options, "-s", 5, stdin="Hello!\n/clear\nHello!").out
    assert both.startswith(first) and both != 2 * first
    assert call(*options, "-s", 5, stdin="Hello!\n/clear\nHello!").out == both


@pytest.mark.parametrize("command", ["run", "chat"])
def test_variables_of_the_template(tmp_path: Path, command: str) -> None:
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.chat_template"] = (
        "{{ messages[0].content if enable_thinking == false and more.n == 1 else 1 // 0 }}"
    )
    path = made.write(tmp_path / "chat.gguf")
    prompt = ["-p", "a"] if command == "run" else []
    given = '{"enable_thinking": false, "more": {"n": 1}}'
    said = call(command, path, *prompt, "--chat-template-kwargs", given, stdin="a")
    assert (said.status, said.out) == (0, "ok\n")
    call(command, path, *prompt, stdin="a").assert_refused(1, "ZeroDivisionError")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--chat-template-kwargs", "enable_thinking"], 2, "is no JSON"),
        (["--chat-template-kwargs", "[1]"], 2, "expected a JSON object, found '[1]'"),
        (["--chat-template-kwargs", "[" * 100_000], 2, "is no JSON"),
        (["--chat-template-kwargs", '{"messages": []}'], 2, "'messages' is no variable"),
        (["--chat-template-kwargs", '{"self": ""}'], 2, "'self' is no variable"),
        (["--chat-template-kwargs", '{"a": 1}', "--raw"], 2, "--raw does without"),
        (["-s", "-3"], 2, "must be 0 or more or -1, not -3"),
        (["-n", "-3"], 2, "must be 0 or more or -1 or -2, not -3"),
        (["-c", "-1"], 2, "must be 1 or more or 0, not -1"),
    ],
)  # fmt: skip
def test_variables_and_numbers_that_make_no_sense(
    smollm2_path: Path, options: list[str], status: int, words: str
) -> None:
    call("run", smollm2_path, "-p", "a", *options).assert_refused(status, words)


def advising(tmp_path: Path) -> Path:
    """A model whose file advises a sampling and has three templates."""
    made = tiny_models.speaker(b"ok")
    for name, value in ("temp", 0.6), ("top_k", 20):
        made.metadata[f"general.sampling.{name}"] = value
    for name in ("", ".tool_use", ".rag"):
        made.metadata[f"tokenizer.chat_template{name}"] = f"{{{{ messages[0].content }}}}{name}"
    return made.write(tmp_path / "advising.gguf")


def test_help_says_how_answers_are_drawn(tmp_path: Path) -> None:
    lines = call("chat", advising(tmp_path), "--top-k", 5, stdin="/help\n").out.splitlines()
    assert lines[-2:] == [
        "Answers are drawn with --temp 0.6 --top-k 5 --top-p 0.95 --min-p 0.05 --repeat-penalty 1 "
        "--presence-penalty 0 --frequency-penalty 0 --repeat-last-n 64; options set others.",
        "The model's file advises --temp 0.6 --top-k 20.",
    ]
    shown = " ".join(call("chat", "--help").out.split())
    assert "(default: the file's temp, or 0.8)" in shown
    assert "what the model's file advises (general.sampling.*) goes before" in shown


def test_a_chat_begins_with_what_the_file_advises(
    tmp_path: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    path = advising(tmp_path)
    for given, said in ((), "--temp 0.6 --top-k 20"), (("--temp", 0), "--top-k 20"):
        chat = start("chat", path, *given, stdin=theirs, stdout=theirs, stderr=theirs)
        try:
            written = await_text(ours, b"> ").decode()
            assert f"as the model's file advises: {said}; these options set others" in written
            os.write(ours, b"\x04")
            assert chat.wait(60) == 0
        finally:
            chat.kill()
            chat.wait()


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_template_by_its_name(tmp_path: Path, command: str) -> None:
    path = advising(tmp_path)
    prompt = ["-p", "a"] if command == "run" else []
    for name in ("default", "tool_use", "rag"):
        assert call(command, path, *prompt, "--chat-template", name, stdin="a").out == "ok\n"
        with mmrt.Model(path, chat_template=name) as model:
            ending = "" if name == "default" else f".{name}"
            asked = [{"role": "user", "content": "a"}]
            assert model.render_chat(asked, tools=[{"name": "f"}]) == f"a{ending}"
    call(command, path, *prompt, "--chat-template", "rug", stdin="a").assert_refused(
        1, "no chat template is called 'rug': the file has default, rag, tool_use"
    )
    (tmp_path / "name").write_text("tool_use")
    call(
        command, path, *prompt, "--chat-template-file", tmp_path / "name", stdin="a"
    ).assert_refused(2, "no Jinja template")


def test_statistics_of_each_turn(smollm2_path: Path) -> None:
    ended = call("chat", smollm2_path, "-n", 3, "--stats", stdin="Hello!\nHello again!\n")
    rates = [line for line in ended.err.splitlines() if "tokens/s" in line]
    assert [line.split(":")[1].strip() for line in rates] == ["prompt", "answer"] * 2
    assert ": 3 tokens" in rates[1]


# ---- in a terminal ----


class Terminal:
    """A chat in a terminal, with a folder for its state."""

    def __init__(self, ends: tuple[int, int], model: Path, state: Path, *options: object) -> None:
        self.ours, theirs = ends
        self._shown = ""  # and not waited for yet
        self.chat: subprocess.Popen[str] = start(
            "chat", model, *options, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm"},
        )  # fmt: skip
        self.wait("> ")

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait(self, text: str) -> str:
        """What is shown up to `text` and with it, since the last wait."""
        while text not in self._shown:
            assert select.select([self.ours], [], [], 60)[0], self._shown
            self._shown += os.read(self.ours, 4096).decode(errors="replace")
        shown, text, self._shown = self._shown.partition(text)
        return shown + text

    def interrupt(self) -> None:
        self.chat.send_signal(signal.SIGINT)

    def end(self) -> int:
        return self.chat.wait(timeout=60)


@pytest.fixture
def opened(smollm2_path: Path, terminal: tuple[int, int], tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(terminal, smollm2_path, tmp_path, "-n", 400, "--ignore-eos")
    yield opened
    opened.chat.kill()
    opened.chat.wait()


def test_no_branch_of_a_chat_is_read_again(tmp_path: Path, terminal: tuple[int, int]) -> None:
    """Lines of history, messages of several lines, /undo, /retry, /system, /save and /load."""
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.chat_template"] = PLAIN
    path, log = made.write(tmp_path / "chat.gguf"), tmp_path / "log.json"
    opened = Terminal(terminal, path, tmp_path, "--stats", "-sys", "word " * 30)

    def read(typed: str) -> int:
        """How many tokens of the prompt are read for what is typed."""
        opened.type(typed)
        shown = opened.wait("prompt: ")[:0] + opened.wait(" tokens,")
        opened.wait("> ")
        return int(shown.split()[0])

    try:
        assert read("one two three four five\n") > 100
        assert read('"""\nsix\nseven\n"""\n') < 60
        assert read("/retry\n") == 8
        opened.type(f"/save {log}\n/undo\n")
        opened.wait("messages are in")
        assert read("eight\n") < 60
        opened.type(f"/load {log}\n")
        opened.wait("messages from")
        assert read("/retry\n") == 8
        assert read("\x1b[A\x1b[A\x1b[A\n") > 0  # "eight" again, of the history
        opened.type("/system Be brief.\n")
        assert read("nine\n") > 60
        opened.type(f"/save {log}\n")
        opened.wait("messages are in")
        opened.wait("> ")  # until a line is asked for, an end of input may be lost
        opened.type("\x04")
        assert opened.end() == 0
    finally:
        opened.chat.kill()
        opened.chat.wait()
    said = [m["content"] for m in json.loads(log.read_text())["messages"] if m["role"] == "user"]
    assert said == ["one two three four five", "six\nseven", "eight", "nine"]


def test_interrupts_stop_an_answer_and_clear_a_line_and_leave(opened: Terminal) -> None:
    opened.type("Tell me a very long story about a dragon.\n")
    opened.wait("dragon.")  # the echo
    opened.wait(" the ")
    opened.interrupt()
    opened.wait("> ")
    opened.type("half a line")
    opened.wait("half a line")
    opened.interrupt()
    assert "Ctrl-D" not in opened.wait("> ")
    opened.interrupt()
    opened.wait("Ctrl-D leaves, and so does another Ctrl-C")
    opened.wait("> ")
    opened.type("/help\n")  # a line between: the next one is not another in a row
    opened.wait("forget the conversation")
    opened.wait("> ")
    opened.interrupt()
    opened.wait("another Ctrl-C")
    opened.wait("> ")
    opened.interrupt()
    assert opened.end() == 130


def test_a_pasted_text_is_one_message_and_kept_for_the_next_session(
    opened: Terminal, smollm2_path: Path, terminal: tuple[int, int], tmp_path: Path
) -> None:
    opened.type("\x1b[200~Explain:\ndef f(x):\n    return x+1\x1b[201~")
    opened.wait("x+1")
    opened.type("\n")
    opened.wait(" the ")
    opened.interrupt()
    opened.wait("> ")
    kept = tmp_path / "mmrt" / "history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [json.loads(line) for line in kept.read_text().splitlines()] == [
        "Explain:\ndef f(x):\n    return x+1"
    ]
    opened.type("/quit\n")
    assert opened.end() == 0
    again = Terminal(terminal, smollm2_path, tmp_path)
    again.type("\x1b[A\x1b[A")  # up: /quit, and what was before it
    again.wait("return x+1")
    again.type("\x15\x04")  # an empty line, and its end
    again.wait("\n")
    again.interrupt()
    again.chat.kill()
    again.chat.wait()


def test_typing_during_an_answer_waits_for_the_prompt(opened: Terminal) -> None:
    opened.type("Tell me a very long story about a dragon.\n")
    opened.wait("dragon.")
    opened.wait(" the ")
    opened.type("/hel")
    opened.interrupt()
    assert "/hel" not in opened.wait("> ")
    opened.type("p\n")
    opened.wait("forget the conversation")


def test_without_readline_lines_that_come_at_once_are_one_message(
    terminal: tuple[int, int],
) -> None:
    script = """
import sys
sys.modules["readline"] = None
from mmrt.cli.messages import messages
for message in messages():
    print("got", message.text.splitlines())
"""
    ours, theirs = terminal
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=HOME, stdin=theirs, stdout=theirs, stderr=theirs) as typed:
        await_text(ours, b"> ")
        os.write(ours, b"def f(x):\n    return x\n")
        await_text(ours, b"got ['def f(x):', '    return x']")
        os.write(ours, b"\x04")
        assert typed.wait(timeout=60) == 0


def test_an_interrupt_just_before_the_wait_for_a_key_is_not_lost(
    terminal: tuple[int, int],
) -> None:
    script = """
import ctypes, functools, readline, signal
from mmrt.cli.messages import messages
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
# No bytecode runs between this and the wait, so that no signal is looked for.
readline.set_startup_hook(functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT))
try:
    list(messages())
except KeyboardInterrupt:
    print("left")
"""
    ours, theirs = terminal
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=HOME, stdin=theirs, stdout=theirs, stderr=theirs) as chat:
        try:
            await_text(ours, b"another Ctrl-C", 20)
            await_text(ours, b"left", 20)
        finally:
            chat.kill()


# ---- the history ----


class Readline:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def set_auto_history(self, on: bool) -> None:
        assert not on

    def add_history(self, line: str) -> None:
        self.lines.append(line)


def test_the_history_is_bounded_and_bears_what_others_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(history, "LIMIT", 3)
    first = history.History()
    first.load(Readline())
    for word in ("a", "b", "b", "c\nd", "e", "f"):
        first.add(word)
    with open(history.path(), "a") as file:
        file.write('not JSON\n7\n"\\u0000"\n"g"\n')
    readline = Readline()
    history.History().load(readline)
    assert readline.lines == ["g"]
    assert len(history.path().read_text().splitlines()) == 3
    assert stat.S_IMODE(history.path().stat().st_mode) == 0o600


def test_a_disk_that_cannot_be_written_keeps_nobody_from_talking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    kept, readline = history.History(), Readline()
    kept.load(readline)
    kept.add("a")
    assert readline.lines == ["a"]
