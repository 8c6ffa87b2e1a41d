"""Options as llama.cpp spells them."""

from pathlib import Path

import pytest
from command import STORY, Ended, call

from mmrt.cli.llama_cpp import CHAT, GENERATION, MODEL, RUN, SERVE, Foreign

MODEL_COMMANDS = ["run", "chat", "trace", "bench"]
BASE = ("run", "-p", STORY, "--raw", "--temp", "0", "-n", "4")


@pytest.fixture(scope="module")
def plain(smollm2_path: Path) -> Ended:
    return call(*BASE, "-m", smollm2_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "-ngl 0", "-fa on", "-c 0", "-s -1", "-t -1", "--mlock", "--no-warmup --jinja", "-no-cnv",
        "--mirostat 0 --typical 1.0", "--no-display-prompt", "--temperature 0 --predict 4",
        "--mmap -st", "--no-context-shift -nr --cpu-strict 0",
    ],
)  # fmt: skip
def test_what_means_the_same_or_is_so_anyway(
    smollm2_path: Path, plain: Ended, options: str
) -> None:
    assert call(*BASE, "-m", smollm2_path, *options.split()) == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("-ngl 99", "CPU"), ("--gpu-layers 10", "CPU"), ("-b 512", "step"), ("-ub 64", "step"),
        ("-v", "--stats"), ("-tb 4", "-t"), ("--keep 4", "system"), ("-ts 3,1", "CPU"),
        ("--no-mmap", "--policy populate"), ("--numa distribute", "--policy numa"),
        ("-C ff", "taskset"), ("--swa-full", "kept"),
    ],
)  # fmt: skip
def test_what_makes_no_difference_is_said(
    smollm2_path: Path, plain: Ended, options: str, word: str
) -> None:
    ended = call(*BASE, "-m", smollm2_path, *options.split())
    assert (ended.status, ended.out) == (0, plain.out)
    assert ended.err.startswith(f"mmrt: {options} has no effect: ")
    assert word in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("run x --context-shift", "context is full"),
        ("run x --grammar g", "grammars"),
        ("run x --mirostat 2", "--top-p"),
        ("run x -i", "mmrt chat"),
        ("run x -r User:", "--stop"),
        ("run x --lora a.gguf", "adapters"),
        ("run x -mu https://a/b", "URLs"),
        ("chat -p hello", "mmrt run"),
        ("chat -no-cnv", "--raw"),
    ],
)
def test_what_would_make_a_difference_is_refused_with_what_to_say_instead(
    command: str, word: str
) -> None:
    call(*command.split()).assert_refused(2, word)


@pytest.mark.parametrize("options", [MODEL, GENERATION, RUN, CHAT, SERVE])
def test_each_option_has_a_reason(options: list[Foreign]) -> None:
    for option in options:
        assert option.why and option.fate in ("same", "moot", "ignored", "refused")
        assert (option.fate == "same") == bool(option.stands_for[0])
        assert option.fate != "moot" or not option.moot


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_hf_is_never_taken_for_help(command: str) -> None:
    ended = call(command, "-hf", "not-a-repository", "-p", "x")
    assert ended.out == "" and ended.status in (1, 2)
