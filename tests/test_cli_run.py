"""`mmrt run` and `mmrt chat`."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from command import STORY, Ended, call, start

import mmrt
from mmrt import counters, default_model

# ---- run ----


def test_run_writes_text(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, STORY, "-n", 8)
    assert (ended.status, ended.err) == (0, "")
    with mmrt.Model(smollm2_path) as model:
        assert ended.out == model.generate(STORY, max_tokens=8) + "\n"


def test_options_may_stand_anywhere(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, "-n", 4, "-t", 1).out
    assert call("run", "-n", 4, smollm2_path, "-t", 1, STORY).out == expected
    assert call("run", "-p", STORY, "-t", 1, "-m", smollm2_path, "-n", 4).out == expected


def test_run_without_a_model_takes_the_default_one(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "path", lambda progress: smollm2_path)
    monkeypatch.setattr(default_model, "is_cached", lambda: False)
    ended = call("run", STORY, "-n", 4)
    assert ended.err == f"mmrt: {default_model.NOTICE}\n"
    monkeypatch.setattr(default_model, "is_cached", lambda: True)
    assert call("run", STORY, "-n", 4) == Ended(0, ended.out, "")


def test_run_of_no_tokens_prints_nothing(smollm2_path: Path) -> None:
    assert call("run", smollm2_path, STORY, "-n", 0) == Ended(0, "", "")


def test_the_seed_decides(smollm2_path: Path) -> None:
    def drawn(seed: int) -> str:
        return call("run", smollm2_path, STORY, "-n", 12, "--temp", 1.5, "-s", seed).out

    assert drawn(1) == drawn(1) != drawn(2)


def test_run_reads_the_prompt_from_stdin(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, "-n", 6)
    assert call("run", smollm2_path, "-", "-n", 6, stdin=STORY + "\n") == expected
    call("run", smollm2_path, "-", stdin=b"\xff\xfe").assert_refused(1)


def test_run_ends_before_a_stop_text(smollm2_path: Path) -> None:
    whole = call("run", smollm2_path, STORY, "-n", 24).out
    word = whole.split()[6]
    ended = call("run", smollm2_path, STORY, "-n", 24, "--stop", word)
    assert ended.out.rstrip("\n") == whole[: whole.index(word)]


def test_statistics_go_to_stderr(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, STORY, "-n", 6, "--stats")
    assert ended.out == call("run", smollm2_path, STORY, "-n", 6).out
    prompt, answer, memory, paging, process = ended.err.splitlines()
    assert prompt.startswith("mmrt: prompt: 4 tokens, ")
    assert answer.startswith("mmrt: answer: 6 tokens, ")
    assert memory.startswith("mmrt: memory: weights 92")
    assert re.fullmatch(
        r"mmrt: paging: \d+ major and \d+ minor faults(; .* from the disk)?", paging
    )
    assert "RSS " in process and "anonymous " in process


def test_run_keeps_to_a_budget(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, "-n", 4).out
    budget = sum(counters.resident()) + 70 * (1 << 20)
    ended = call("run", smollm2_path, STORY, "-n", 4, "--memory", budget, "--stats")
    assert ended.out == expected
    for word in ("kept", "streamed", "streaming:", "waited for the disk", "budget"):
        assert word in ended.err
    call("run", smollm2_path, STORY, "--memory", "1MiB").assert_refused(1, "the least that would")
    call("run", smollm2_path, STORY, "--memory", "900TiB").assert_refused(1, "memory")


@pytest.mark.parametrize("size", ["0", "-1GiB", "much", "1XB"])
def test_budgets_that_are_none(size: str) -> None:
    ended = call("run", "m.gguf", STORY, f"--memory={size}")
    assert ended.status == 2 and "--memory" in ended.err


def test_output_is_utf8_whatever_the_locale(smollm2_path: Path) -> None:
    process = start(
        "run", smollm2_path, "😀 😃 😄 😀 😃 😄 😀 😃 😄 😀", "-n", 24,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not out.isascii()


# ---- chat ----


def test_chat_takes_piped_lines_as_turns(smollm2_path: Path) -> None:
    lines = "My name is Zork.\n\nWhat is my name?\n/clear\nWhat is my name?\n/exit\nHello?\n"
    ended = call("chat", smollm2_path, "-n", 8, stdin=lines)
    assert (ended.status, ended.err) == (0, "")
    _, second, third = ended.out.strip().split("\n")
    assert "Zork" in second
    assert "Zork" not in third


def test_chat_answers_as_the_model_does(smollm2_path: Path) -> None:
    told = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Hello!"}]
    with mmrt.Model(smollm2_path) as model:
        expected = model.chat(told, max_tokens=8)
    ended = call("chat", smollm2_path, "-n", 8, "--system", "Speak French.", stdin="Hello!")
    assert ended.out.rstrip("\n") == expected


def test_chat_knows_its_commands(smollm2_path: Path) -> None:
    ended = call("chat", smollm2_path, stdin="/help\n/fly\n")
    assert "/clear" in ended.out
    assert ended.err == "mmrt: no command /fly: there are /clear, /help and /exit\n"


def test_chat_needs_a_template(gemma3_path: Path) -> None:
    call("chat", gemma3_path, stdin="Hello!").assert_refused(1, "chat template")


def test_a_piped_chat_that_outgrows_the_context_is_refused(smollm2_path: Path) -> None:
    call("chat", smollm2_path, "-c", 64, stdin="word " * 100).assert_refused(1, "context of 64")
