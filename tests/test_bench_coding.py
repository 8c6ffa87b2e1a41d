"""The questions about code, and answers as Markdown."""

from pathlib import Path

import pytest
import tiny_models

import mmrt
from bench import coding


def test_answers_are_written_as_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_models.speaker(b"```py\n", b"x = 1\n", ends=False, context=4096)
    made.metadata["tokenizer.chat_template"] = "{{ messages[1].content }}"
    path, out = made.write(tmp_path / "m.gguf"), tmp_path / "answers.md"
    monkeypatch.setattr("sys.argv", ["coding", str(path), "-t", "1", "-o", str(out)])
    monkeypatch.setattr(coding, "MOST_TOKENS", 2)
    coding.main()
    assert out.read_text() + "\n" == capsys.readouterr().out
    parts = out.read_text().split("\n## ")
    assert len(parts) == len(coding.QUESTIONS) == 10
    assert parts[0] == (
        f"## 1. {coding.QUESTIONS[0]}\n\n```py\nx = 1\n```\n\n*(cut at 2 tokens)*\n"
    )
    assert coding.written(mmrt.Text(" Yes. \n", "stop")) == "Yes."
