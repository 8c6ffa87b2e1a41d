"""The command `mmrt`: usage, refusals, signals and pipes."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import HOME, STORY, Ended, await_text, call, start

import mmrt
from mmrt.cli import COMMANDS
from mmrt.cli.prompt import model_and_prompt

# ---- usage ----


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    ended = call(command, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: mmrt {command} ")


def test_help_lists_the_commands() -> None:
    ended = call("--help")
    assert ended.status == 0
    for command, what in COMMANDS.items():
        assert command in ended.out
        assert what in ended.out


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
from mmrt.cli import main
main(["--help"])
sys.exit(", ".join({"numpy", "rich", "tokenizers", "jinja2"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_version() -> None:
    assert call("--version").out == f"mmrt {mmrt.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fly",
        "--fly",
        "run",
        "run -n 3",
        "run a.gguf b c",
        "run a --fly",
        "run a -n -3",
        "run a -c -1",
        "run a -s -2",
        "run a -p b -f c",
        "run a -m b -hf c/d",
        "run a -hff b",
        "run a --raw --system b",
        "run a --chat-template-file no/such",
        "chat a -hf b/c",
        "run a -n many",
        "run a -t 0",
        "run a --temp hot",
        "run a --temp -1",
        "run a --top-p 0",
        "run a -p b -m c d",
        "chat a.gguf -m b.gguf",
        "inspect",
        "inspect a b",
        "bench -r 0",
        "bench -p 0 -n 0",
        "bench -o xml",
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: str) -> None:
    call(*arguments.split()).assert_refused(2, "--help)")


@pytest.mark.parametrize(
    ("words", "model", "prompt", "expected"),
    [
        ([STORY], None, None, (None, STORY)),
        (["no/such.gguf", STORY], None, None, ("no/such.gguf", STORY)),
        (["no/such.gguf"], None, STORY, ("no/such.gguf", STORY)),
        ([STORY], "m.gguf", None, ("m.gguf", STORY)),
        (["x.gguf"], "m.gguf", None, ("m.gguf", "x.gguf")),
        ([], "m.gguf", "", ("m.gguf", "")),
        ([], None, STORY, (None, STORY)),
        ([__file__, STORY], None, None, (__file__, STORY)),
        ([__file__], None, STORY, (__file__, STORY)),
    ],
)
def test_which_word_is_the_model_and_which_the_prompt(
    words: list[str], model: str | None, prompt: str | None, expected: tuple[str | None, str]
) -> None:
    given = argparse.Namespace(
        words=words, model_option=model, prompt=prompt, file=None, hf_repo=None, hf_file=None
    )
    assert model_and_prompt(given) == expected


def given_words(*words: str) -> argparse.Namespace:
    return argparse.Namespace(
        words=words, model_option=None, prompt=None, file=None, hf_repo=None, hf_file=None
    )


@pytest.mark.parametrize(
    "word", ["llama3.2", "qwen2.5:7b", "owner/name", "./models/small.bin", "mistral", "Gemma"]
)
def test_a_prompt_that_looks_like_a_model_is_said_to_be_none(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_and_prompt(given_words(word)) == (None, word)
    said = capsys.readouterr().err
    assert said.startswith(f"mmrt: there is no file {word!r}, so it is the prompt; -m FILE ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["Hello", "Hi!", "Why?", "What is llama3.2?", "7*6=", "42", STORY])
def test_other_prompts_are_read_without_a_word(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_and_prompt(given_words(word)) == (None, word)
    assert not capsys.readouterr().err


# ---- closed streams ----


@pytest.mark.parametrize(
    ("closed", "arguments", "status"),
    [("<&-", "run", 2), ("<&-", "chat", 0), (">&-", "pagetables 1GiB", 0), ("2>&-", "inspect", 2)],
)
def test_a_closed_stream_is_an_empty_one(
    smollm2_path: Path, closed: str, arguments: str, status: int
) -> None:
    model = f"-m '{smollm2_path}'" if arguments == "chat" else ""
    command = f"'{sys.executable}' -m mmrt {arguments} {model} {closed}"
    ended = subprocess.run(command, shell=True, cwd=HOME, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert "Traceback" not in ended.stderr


# ---- refusals ----


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "magic.gguf").write_bytes(b"not a model\n" * 100)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0\x05")
    names = ("missing", "folder", "empty", "magic", "cut")
    return {name: tmp_path / f"{name}.gguf" for name in names}


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "magic", "cut"])
@pytest.mark.parametrize("command", ["run -p x -m", "chat -m", "inspect", "bench -m"])
def test_a_bad_file_is_one_line_and_status_1(
    bad_files: dict[str, Path], command: str, kind: str
) -> None:
    call(*command.split(), bad_files[kind]).assert_refused(1, str(bad_files[kind]))


def test_a_model_cut_short_is_refused(smollm2_path: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with open(smollm2_path, "rb") as whole:
        cut.write_bytes(whole.read(3_000_000))
    call("run", cut, STORY).assert_refused(1, "token_embd.weight")


def test_a_model_of_another_format_is_told_from_a_broken_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    call("run", tmp_path / "x.npy", STORY).assert_refused(1, "x.npy: models run from GGUF", "npy")


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "perceptron")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    call("run", path, STORY).assert_refused(1, "perceptron")
    assert "perceptron" in call("inspect", path).out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "MODEL", ""],
        ["run", "MODEL", "word " * 100, "-c", "32"],
        ["run", "MODEL", STORY, "-c", "1000000"],
        ["run", "MODEL", "-p", "\udcff"],
        ["bench", "MODEL", "-p", "100000", "-n", "0"],
        ["inspect", "MODEL", "--metadata", "no.such.key"],
    ],
)
def test_what_the_model_cannot_do_is_one_line_and_status_1(
    smollm2_path: Path, arguments: list[str]
) -> None:
    call(*[smollm2_path if a == "MODEL" else a for a in arguments]).assert_refused(1)


# ---- signals and pipes ----


def test_an_interrupt_ends_a_long_prefill(
    smollm2_path: Path, tmp_path: Path, terminal: tuple[int, int]
) -> None:
    text = tmp_path / "long.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 600)
    ours, theirs = terminal
    with (
        open(text) as stdin,
        start("run", smollm2_path, "-", stdin=stdin, stdout=subprocess.PIPE, stderr=theirs) as run,
    ):
        await_text(ours, b"reading the prompt")
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 130
        assert run.stdout is not None
        assert run.stdout.read() == ""
    assert b"Traceback" not in await_text(ours, b"")


def test_the_bar_is_there_from_the_first_step_on(
    smollm2_path: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    command = ("run", smollm2_path, "-p", STORY, "-n", 1)
    with start(*command, stdout=subprocess.DEVNULL, stderr=theirs) as run:
        await_text(ours, b"reading the prompt")
        assert run.wait(timeout=60) == 0


def test_an_interrupt_ends_the_line_of_the_text(smollm2_path: Path) -> None:
    command = ("run", smollm2_path, STORY, "--ignore-eos", "-n", -1)
    with start(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        first = run.stdout.read(20)
        run.send_signal(signal.SIGINT)
        rest = run.stdout.read()
    assert run.returncode == 130
    assert (first + rest).endswith("\n")


def test_output_that_nobody_reads_ends_it_quietly(smollm2_path: Path) -> None:
    key = "tokenizer.ggml.tokens"
    process = start(
        "inspect", smollm2_path, "--metadata", key, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line_and_status_1(smollm2_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("inspect", smollm2_path, stdout=full, stderr=subprocess.PIPE)
        _, complaint = process.communicate(timeout=60)
    Ended(process.returncode, "", complaint).assert_refused(1, "No space left on device")
