"""A server that was ended, or killed, and another after it: what was read is not read again."""

import signal
from pathlib import Path

import pytest
from served import Running, write_talker
from test_serve_limits import start_command, until


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_read_is_found_after_a_restart(tmp_path: Path, ending: signal.Signals) -> None:
    path = write_talker(tmp_path / "t.gguf")
    prompt = [5 + i * i % 90 for i in range(700)]
    found, said = [], []
    for _ in range(2):
        process, port = start_command(path, "--kv-dir", tmp_path / "kv", "--exact")
        server = Running(None, port)  # type: ignore[arg-type]
        for _ in range(2):
            body = {"prompt": prompt, "max_tokens": 5, "temperature": 0}
            reply = server.post("/v1/completions", body).json
            found.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
            said.append(reply["choices"][0]["text"])
        if ending == signal.SIGKILL:
            await_files(tmp_path / "kv")
        process.send_signal(ending)
        process.wait(60)
        assert process.stderr is not None
        process.stderr.close()
    assert found[0] == 0 and found[1] >= 690
    assert found[2] >= 512  # whole files
    assert len(set(said)) == 1


def await_files(folder: Path) -> None:
    """Until two pieces of 256 tokens are written, and the rest."""
    until(lambda: len([one for one in folder.rglob("*") if one.is_file()]) >= 3)
