"""`mmrt run`: answers, and texts that go on."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command import STORY, Ended, call, start

import mmrt
from mmrt import counters, default_model
from mmrt.cli.options import recommended

QUESTION = "What is the capital of France?"

GREEDY = ("--temp", 0)
RAW = ("--raw", *GREEDY)


@pytest.mark.slow
def test_run_answers_by_the_chat_template(smollm2_path: Path) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    with mmrt.Model(smollm2_path) as model:
        expected = model.chat(messages, max_tokens=12)
        pirate = model.chat(
            [{"role": "system", "content": "You are a pirate."}, *messages], max_tokens=12
        )
    assert call("run", smollm2_path, QUESTION, "-n", 12, *GREEDY).out == expected + "\n"
    ended = call("run", smollm2_path, QUESTION, "-n", 12, *GREEDY, "-sys", "You are a pirate.")
    assert ended.out == pirate + "\n"


@pytest.mark.slow
def test_another_template(smollm2_path: Path, gemma3_path: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}Q: {{ message.content }} A:{% endfor %}"
    with mmrt.Model(smollm2_path) as model:
        expected = model.generate(f"Q: {QUESTION} A:", max_tokens=6) + "\n"
    options = ("-n", 6, *GREEDY)
    assert (
        call("run", smollm2_path, QUESTION, *options, "--chat-template", template).out == expected
    )
    (tmp_path / "q.jinja").write_text(template)
    ended = call(
        "run", smollm2_path, QUESTION, *options, "--chat-template-file", tmp_path / "q.jinja"
    )
    assert ended.out == expected
    # A model without one goes on with a text, and converses with another's.
    with mmrt.Model(gemma3_path) as model:
        assert (
            call("run", gemma3_path, STORY, *options).out
            == model.generate(STORY, max_tokens=6) + "\n"
        )
    call("chat", gemma3_path, stdin="Hello!").assert_refused(1, "chat template")
    call("run", gemma3_path, STORY, "--system", "Rhyme.").assert_refused(1, "chat template")
    assert call("chat", gemma3_path, *options, "--chat-template", template, stdin="Hi").status == 0


@pytest.mark.slow
def test_an_answer_that_is_cut_says_so(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, QUESTION, "-n", 5, *GREEDY)
    assert ended.err == "mmrt: cut at 5 tokens: -n 10 allows more, -n -1 any number\n"
    assert call("run", smollm2_path, STORY, "-n", 5, *RAW).err == ""
    ended = call("run", smollm2_path, "Count on.", "-n", -1, "-c", 60, "--ignore-eos", *GREEDY)
    assert ended.err == "mmrt: cut: the context of 60 tokens is full\n"
    for n in (-1, 100):
        ended = call("run", smollm2_path, STORY, "-n", n, "-c", 12, "--ignore-eos", *RAW)
        assert ended.err == "mmrt: cut: the context of 12 tokens is full\n"


def test_a_text_that_ends_at_once_says_so(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, QUESTION, *RAW)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == (
        "mmrt: the model ended the text at once; it has a chat template, and answers without "
        "--raw\n"
    )
    assert call("run", smollm2_path, QUESTION, "--ignore-eos", "-n", 4, *RAW).out.strip()


@pytest.mark.slow
def test_answers_are_drawn_unless_told_otherwise(smollm2_path: Path) -> None:
    answer: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    with mmrt.Model(smollm2_path) as model:
        expected = model.generate(STORY, max_tokens=12, seed=3, **answer) + "\n"
    assert call("run", smollm2_path, STORY, "--raw", "-n", 12, "-s", 3).out == expected


@pytest.mark.slow
def test_penalties_of_presence_and_frequency(smollm2_path: Path) -> None:
    penalties: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
    with mmrt.Model(smollm2_path) as model:
        expected = model.generate(STORY, max_tokens=30, **penalties)
        assert expected != model.generate(STORY, max_tokens=30)
    options = ("-n", 30, "--presence-penalty", 1.5, "--frequency-penalty", 0.5)
    assert call("run", smollm2_path, STORY, *RAW, *options).out == expected + "\n"
    ended = call("run", smollm2_path, STORY, *RAW, "--presence-penalty", "inf")
    ended.assert_refused(2, "presence_penalty")


def test_what_the_file_recommends_goes_before_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    ours = recommended({})
    assert ours == {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "repeat_last_n": 64,
    }  # fmt: skip
    said = {"temp": 0.5, "top_k": 7, "penalty_repeat": 1.2, "top_p": 7.0, "min_p": "low"}
    found = recommended({f"general.sampling.{key}": value for key, value in said.items()})
    assert found == ours | {"temperature": 0.5, "top_k": 7, "repeat_penalty": 1.2}
    assert capsys.readouterr().err.splitlines() == [
        "mmrt: general.sampling.top_p is 7.0, which is passed over",
        "mmrt: general.sampling.min_p is 'low', which is passed over",
    ]


def test_a_way_of_cutting_words_in_place_of_the_files(tmp_path: Path) -> None:
    made = tiny_models.speaker(b"ok")
    made.metadata["tokenizer.ggml.pre"] = "of-tomorrow"
    path = made.write(tmp_path / "m.gguf")
    call("run", path, "a").assert_refused(1, "'of-tomorrow'", "--pre names one to use")
    assert call("run", path, "a", "--pre", "qwen2").out == "ok\n"
    call("run", path, "a", "--pre", "qwen").assert_refused(1, "pre: there is no 'qwen'; there are ")
    with mmrt.Model(path, pre="qwen2") as model:
        assert model.generate("a") == "ok"
    call("run", path, "a", "--override-kv", "x=str:y").assert_refused(2, "but for --pre")


@pytest.mark.slow
def test_run_writes_text(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, STORY, *RAW, "-n", 8)
    assert (ended.status, ended.err) == (0, "")
    with mmrt.Model(smollm2_path) as model:
        assert ended.out == model.generate(STORY, max_tokens=8) + "\n"


def test_options_may_stand_anywhere(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, *RAW, "-n", 4, "-t", 1).out
    assert call("run", "-n", 4, smollm2_path, "--raw", "-t", 1, STORY, "--temp", 0).out == expected
    assert call("run", *RAW, "-p", STORY, "-t", 1, "-m", smollm2_path, "-n", 4).out == expected


def test_run_without_a_model_takes_the_default_one(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "path", lambda progress, waiting: smollm2_path)
    monkeypatch.setattr(default_model, "is_cached", lambda: False)
    ended = call("run", STORY, "-n", 4, *RAW)
    assert ended.err == f"mmrt: {default_model.NOTICE}\n"
    monkeypatch.setattr(default_model, "is_cached", lambda: True)
    assert call("run", STORY, "-n", 4, *RAW) == Ended(0, ended.out, "")


def test_exact_is_passed_on(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_it = mmrt.Model.__init__

    def note(model: mmrt.Model, *arguments: Any, **options: Any) -> None:
        opened.append(options["exact"])
        open_it(model, *arguments, **options)

    monkeypatch.setattr(mmrt.Model, "__init__", note)
    plain = call("run", smollm2_path, STORY, *RAW, "-n", 4)
    assert call("run", smollm2_path, STORY, *RAW, "-n", 4, "--exact") == plain
    assert opened == [False, True]


def test_run_of_no_tokens_prints_nothing(smollm2_path: Path) -> None:
    assert call("run", smollm2_path, STORY, *RAW, "-n", 0) == Ended(0, "", "")


@pytest.mark.slow
def test_the_seed_decides(smollm2_path: Path) -> None:
    def drawn(seed: int) -> str:
        return call("run", smollm2_path, STORY, "--raw", "-n", 12, "--temp", 1.5, "-s", seed).out

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.slow
def test_run_reads_the_prompt_from_stdin(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, *RAW, "-n", 6)
    assert call("run", smollm2_path, "-", *RAW, "-n", 6, stdin=STORY + "\n") == expected
    call("run", smollm2_path, "-", stdin=b"\xff\xfe").assert_refused(1)
    assert call("run", smollm2_path, *RAW, "-n", 6, stdin=STORY + "\n") == expected
    assert call("run", "-m", smollm2_path, *RAW, "-n", 6, stdin=STORY) == expected
    call("run", smollm2_path).assert_refused(2, "no prompt given", "is taken for the model")
    call("run", stdin="\n").assert_refused(2, "no prompt given")


def test_run_does_not_wait_for_a_prompt_from_a_terminal(terminal: tuple[int, int]) -> None:
    process = start("run", stdin=terminal[1], stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "no prompt given" in err


@pytest.mark.slow
def test_run_ends_before_a_stop_text(smollm2_path: Path) -> None:
    whole = call("run", smollm2_path, STORY, *RAW, "-n", 24).out
    word = whole.split()[6]
    ended = call("run", smollm2_path, STORY, *RAW, "-n", 24, "--stop", word)
    assert ended.out.rstrip("\n") == whole[: whole.index(word)]


def test_statistics_go_to_stderr(smollm2_path: Path) -> None:
    ended = call("run", smollm2_path, STORY, *RAW, "-n", 6, "--stats")
    assert ended.out == call("run", smollm2_path, STORY, *RAW, "-n", 6).out
    prompt, answer, memory, paging, process = ended.err.splitlines()
    assert prompt.startswith("mmrt: prompt: 4 tokens, ")
    assert answer.startswith("mmrt: answer: 6 tokens, ")
    assert memory.startswith("mmrt: memory: weights 92")
    assert re.fullmatch(
        r"mmrt: paging: \d+ major and \d+ minor faults(; .* from the disk)?", paging
    )
    assert "RSS " in process and "anonymous " in process


def test_run_keeps_to_a_budget(smollm2_path: Path) -> None:
    expected = call("run", smollm2_path, STORY, *RAW, "-n", 4).out
    budget = sum(counters.resident()) + 70 * (1 << 20)
    ended = call("run", smollm2_path, STORY, *RAW, "-n", 4, "--memory", budget, "--stats")
    assert ended.out == expected
    for word in ("kept", "streamed", "streaming:", "waited for the disk", "budget"):
        assert word in ended.err
    call("run", smollm2_path, STORY, "--memory", "1MiB").assert_refused(1, "needs at least")
    call("run", smollm2_path, STORY, *RAW, "--memory", "900TiB").assert_refused(1, "memory")


@pytest.mark.parametrize("size", ["0", "-1GiB", "much", "1XB"])
def test_budgets_that_are_none(size: str) -> None:
    ended = call("run", "m.gguf", STORY, f"--memory={size}")
    assert ended.status == 2 and "--memory" in ended.err


@pytest.mark.slow
def test_output_is_utf8_whatever_the_locale(smollm2_path: Path) -> None:
    process = start(
        "run", smollm2_path, "--raw", "--temp", "0", "😀 😃 😄 😀 😃 😄 😀 😃 😄 😀", "-n", 24,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not out.isascii()


def test_json_by_a_schema(tmp_path: Path) -> None:
    path = tiny_models.speaker(b"Yes", b"No").write(tmp_path / "model.gguf")
    schema = '{"enum": ["Yes", "No"]}'
    (tmp_path / "schema.json").write_text(schema)
    for option in (("-j", schema), ("-jf", tmp_path / "schema.json")):
        ended = call("run", path, "a", *option, *RAW)
        assert (ended.status, ended.err) == (0, "") and ended.out in ('"Yes"\n', '"No"\n')
    talk = call(
        "chat", path, "-j", schema, "--chat-template", "{{ messages[0].content }}", stdin="a"
    )
    assert json.loads(talk.out) in ("Yes", "No")
    call("run", path, "a", "-j", "{", *RAW).assert_refused(2, "the schema: no JSON")
    call("run", path, "a", "-j", "[]", *RAW).assert_refused(2, "the schema: expected", "found []")
    for name, content, words in (
        ("none", None, "none: No such file or directory"),
        ("empty", b"", "empty: no JSON"),
        ("binary", b"\xff", "binary: not UTF-8: byte 0"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for spelling in ("-jf", "--chat-template-file"):
            ended = call("run", path, "a", spelling, tmp_path / name, *RAW)
            ended.assert_refused(2, f"{tmp_path}/{words.replace('no JSON', '')}")
            assert "Errno" not in ended.err
    call("run", path, "a", "-j", '{"not": {}}', *RAW).assert_refused(1, '["not"]')


def test_files_of_prompts(tmp_path: Path) -> None:
    path = tiny_models.speaker(b"Yes").write(tmp_path / "model.gguf")
    (tmp_path / "binary").write_bytes(b"ab\xff")
    call("run", path, "-f", tmp_path / "binary", *RAW).assert_refused(
        1, f"{tmp_path}/binary: the text is not UTF-8: byte 0xff at character 2"
    )
    for given, named in (("", "''"), (tmp_path / "none", "none"), (tmp_path, str(tmp_path))):
        call("run", path, "-f", given, *RAW).assert_refused(1, named)


def test_warnings_are_one_line_each(tmp_path: Path) -> None:
    """Without the place in mmrt's source that Python shows."""
    path = tiny_models.llama(context=512).write(tmp_path / "model.gguf")
    asked = ("run", path, "ab" * 100, "--kv-dir", tmp_path / "kv", "-n", 1, *RAW)
    assert call(*asked).err == ""
    (file,) = (tmp_path / "kv").glob("*/*.kv")
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    ended = call(*asked)
    assert ended.status == 0
    assert ended.err == f"mmrt: {file}: saved keys and values are damaged: left out\n"


def test_drafts_are_told(tmp_path: Path) -> None:
    path = tiny_models.llama().write(tmp_path / "tiny.gguf")
    prompt = "one two three " * 4
    options = ("--raw", "-n", 60, *GREEDY, "--stats")
    plain = call("run", path, prompt, *options)
    assert "drafts" not in plain.err
    drafted = call("run", path, prompt, *options, "--draft", "ngram")
    assert drafted.out == plain.out
    assert re.search(r"drafts so far: \d+ of \d+ tokens right, in \d+ steps", drafted.err)
    call("run", path, prompt, "--draft", "guess").assert_refused(1, "draft")
