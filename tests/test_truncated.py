"""Files that are cut short while they are mapped: an exception, and a process that lives."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from children import in_child
from command import HOME
from hostile import make_gguf as make
from pages import PAGE, write_file

import mmrt
from mmrt import formats
from mmrt.core.kernels import Pool, matmul
from mmrt.core.mapping import Mapping
from mmrt.errors import FileError
from mmrt.files.formats import TensorFile

ROWS, COLS = 256, 1024
SIZE = ROWS * COLS * 4
NAMES = ["t0", "t1", "t2", "t3"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four float32 matrices of ones, one after another at the end of the file."""
    tensors = tuple(make.tensor(name, (COLS, ROWS), 0, i * SIZE) for i, name in enumerate(NAMES))
    ones = np.ones((len(NAMES), ROWS, COLS), np.float32).tobytes()
    return write_file(tmp_path / "ones.gguf", make.gguf((make.ARCHITECTURE,), tensors, ones))


@pytest.fixture
def file(path: Path) -> Iterator[TensorFile]:
    """The file, opened whole, then cut in the middle of t2."""
    with mmrt.open(path) as file:
        os.truncate(path, cut(file))
        yield file


def cut(file: TensorFile) -> int:
    return file["t2"].offset + SIZE // 2


X = np.ones(COLS, np.float32)


# ---- through the API ----


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.dequantize(),
        lambda t: t @ X,
        lambda t: t @ np.ones((COLS, 3), np.float32),
        lambda t: t.__array__(copy=True),
        lambda t: t.__array__(np.float64),
        lambda t: np.from_dlpack(t, copy=True),
        lambda t: t.quantize("Q8_0"),
        lambda t: t.verify(),
    ],
)
def test_what_reads_a_tensor_says_which_byte_is_gone(
    path: Path, file: TensorFile, use: Callable[[mmrt.Tensor], object]
) -> None:
    at = cut(file)
    with pytest.raises(FileError, match=rf"byte \d+ is gone: .* cut to {at} bytes") as caught:
        use(file["t2"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    byte = int(str(caught.value).split("byte ")[1].split()[0])
    assert at <= byte < file["t3"].offset


def test_what_is_left_can_be_used_until_something_is_missed(file: TensorFile) -> None:
    for name in ("t0", "t1"):
        assert (file[name].dequantize() == 1).all()
        assert (file[name] @ X == COLS).all()
    with pytest.raises(FileError, match="is gone"):
        file["t3"].dequantize()
    with pytest.raises(FileError, match="is gone"):  # what else may have been lost is not known
        file["t0"].dequantize()


def test_bytes_that_were_cut_within_a_page_are_missed_too(path: Path) -> None:
    with mmrt.open(path) as file:
        size = file.mappings[0].size
        os.truncate(path, size - 10)  # for which the kernel has no signal
        with pytest.raises(FileError, match=f"byte {size - 10} is gone"):
            file["t3"].dequantize()
        with pytest.raises(FileError, match=f"byte {size - 10} is gone"):
            file["t3"] @ X
        assert (file["t2"].dequantize() == 1).all()


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.advise("populate_read"),
        lambda t: t.lock(),
        lambda t: t.mapping.verify(),
    ],
)
def test_what_brings_pages_in_says_so(file: TensorFile, use: Callable[[mmrt.Tensor], None]) -> None:
    with pytest.raises(FileError, match=rf"is gone: the file was cut to {cut(file)} bytes"):
        use(file["t3"])


def test_metadata_and_headers_say_so(path: Path) -> None:
    mapping = Mapping(path)
    with mmrt.open(path) as file:
        os.truncate(path, 30)
        with pytest.raises(FileError, match="is gone: the file was cut to 30 bytes"):
            file.metadata["general.architecture"]
    with pytest.raises(FileError, match="is gone: the file was cut to 30 bytes"):
        formats.from_mapping(mapping)
    mapping.close()


def test_a_policy_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink() -> int:
        os.truncate(path, 4096)
        return 1 << 40

    monkeypatch.setattr("mmrt.files.policies.ranges.available_memory", shrink)
    with pytest.raises(FileError, match="is gone"):
        mmrt.open(path, policy="populate")
    assert str(path) not in Path("/proc/self/maps").read_text()


# ---- raw views ----


def test_raw_views_read_zeros_and_the_next_call_tells(file: TensorFile) -> None:
    view, parts = np.asarray(file["t3"]), memoryview(file["t2"])
    assert view.sum() == 0 and not any(bytes(parts)[-PAGE:])
    for use in (
        lambda: memoryview(file["t0"]),
        lambda: file["t0"].residency(),
        lambda: file["t0"].advise("normal"),
        lambda: file.mappings[0].verify(),
        lambda: file.metadata["general.architecture"],
    ):
        with pytest.raises(FileError, match="is gone"):
            use()
    del view
    parts.release()


def test_close_tells_what_no_call_has_told(path: Path) -> None:
    file = mmrt.open(path)
    os.truncate(path, cut(file))
    assert np.asarray(file["t3"]).sum() == 0
    with pytest.raises(FileError, match="is gone"):
        file.close()
    assert file.closed and str(path) not in Path("/proc/self/maps").read_text()
    file.close()


def test_close_tells_nothing_twice(path: Path) -> None:
    with mmrt.open(path) as file:
        os.truncate(path, cut(file))
        with pytest.raises(FileError):
            file["t3"].dequantize()
    assert file.closed


def test_a_file_that_is_filled_again_stays_lost(path: Path) -> None:
    whole = path.read_bytes()
    with mmrt.open(path) as file:
        path.write_bytes(b"")
        assert np.asarray(file["t1"]).sum() == 0
        path.write_bytes(whole)
        assert np.asarray(file.mappings[0].closed) == 0
        with pytest.raises(FileError, match="cut to 0 bytes"):
            file["t1"].dequantize()
    with mmrt.open(path) as file:  # a new mapping has all of it
        assert (file["t1"].dequantize() == 1).all()


def test_writing_to_what_is_gone(tmp_path: Path) -> None:
    path = write_file(tmp_path / "file", bytes(8 * PAGE))
    mapping = Mapping(path, protection="rw")
    with memoryview(mapping) as view:
        os.truncate(path, PAGE)
        view[4 * PAGE] = 5
        assert view[4 * PAGE] == 5
    with pytest.raises(FileError, match=f"byte {4 * PAGE} is gone: .* cut to {PAGE} bytes"):
        mapping.close()


# ---- with eight threads ----


def cut_after(path: Path, seconds: float) -> threading.Thread:
    def work() -> None:
        time.sleep(seconds)
        os.truncate(path, 5 * PAGE + 9)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("columns", [1, 8])
def test_inside_a_kernel_with_eight_threads(path: Path, columns: int) -> None:
    pool, x = Pool(8), np.ones((COLS, columns), np.float32)
    whole = path.read_bytes()
    for delay in range(5):
        path.write_bytes(whole)
        with mmrt.open(path) as file:
            thread = cut_after(path, delay * 0.001)
            with pytest.raises(FileError, match=r"ones.gguf: byte \d+ is gone: the file was cut"):
                while True:
                    product = matmul("F32", file["t3"], (ROWS, COLS), x, pool)
                    assert (product == COLS).all()  # what is given out is right
            thread.join()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(n_layers=4, n_embd=256, n_ff=512, type="Q8_0")
    return model.write(tmp_path_factory.mktemp("truncated") / "model.gguf")


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_inside_a_model_with_eight_threads(model_path: Path, tmp_path: Path, delay: float) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_path.read_bytes())
    with mmrt.Model(model_path, threads=8) as model:
        expected = model.logits([1, 2, 3])
    with mmrt.Model(path, threads=8) as model, model.sequence() as text:
        thread = cut_after(path, delay)
        with pytest.raises(FileError, match=r"tensor .*: .*model.gguf: byte \d+ is gone"):
            while True:
                logits = text.extend([1, 2, 3], outputs="all")
                assert np.array_equal(logits, expected)
                text.truncate(0)
        thread.join()
        assert len(text) == len(text.tokens) == 0
        with pytest.raises(FileError, match="is gone"):
            model.generate([1, 2, 3], max_tokens=2)


def test_many_python_threads(path: Path) -> None:
    failures: list[Exception] = []

    def work(file: TensorFile, name: str) -> None:
        try:
            while True:
                assert (file[name].dequantize() == 1).all()
        except Exception as error:
            failures.append(error)

    with mmrt.open(path) as file:
        threads = [threading.Thread(target=work, args=(file, NAMES[i % 4])) for i in range(8)]
        for thread in threads:
            thread.start()
        cut_after(path, 0.05).join()
        for thread in threads:
            thread.join()
    assert len(failures) == 8 and {type(error) for error in failures} == {FileError}


def test_in_a_forked_child(file: TensorFile) -> None:
    def work() -> None:
        with pytest.raises(FileError):
            file["t3"].dequantize()

    in_child(work)
    assert (file["t0"].dequantize() == 1).all()  # the parent has missed nothing yet


# ---- beside other handlers of the signal ----


def run(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    words = [str(argument) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=HOME, capture_output=True, text=True
    )


ENABLED_LATER = """
import faulthandler, os, sys
import numpy as np
import mmrt
mapping = mmrt.Mapping(sys.argv[1])
{view_before}
faulthandler.enable()
{view_after}
os.truncate(sys.argv[1], 4096)
assert view[0] == 1 and view[3 * 4096] == 0
del view
try:
    mapping.verify()
except mmrt.FileError:
    print("told")
"""


@pytest.mark.parametrize("reported", [False, True])
@pytest.mark.parametrize("make_view", ["np.asarray(mapping)", "memoryview(mapping)"])
def test_faulthandler_enabled_after_the_mapping(
    tmp_path: Path, make_view: str, reported: bool
) -> None:
    """Views made later are read in silence; for those from before it reports, then goes on."""
    path = write_file(tmp_path / "file", bytes([1]) * (4 * 4096))
    view = f"view = {make_view}"
    before, after = (view, "") if reported else ("", view)
    done = run(ENABLED_LATER.format(view_before=before, view_after=after), path)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
    assert done.stderr.count("Bus error") == reported


STEP = """
import faulthandler, os, sys
import mmrt
with mmrt.Model(sys.argv[1], threads=2) as model, model.sequence() as sequence:
    sequence.extend([1])
    faulthandler.enable()
    os.truncate(sys.argv[1], 8192)
    try:
        sequence.extend([1])
    except mmrt.FileError as error:
        print("told")
"""


def test_faulthandler_enabled_before_a_step(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny_models.llama().write(path)
    done = run(STEP, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")


FOREIGN = """
import faulthandler, mmap, os, sys
import mmrt
{before}
mapping = mmrt.Mapping(sys.argv[1])
{after}
fd = os.open(sys.argv[1], os.O_RDWR)
foreign = mmap.mmap(fd, 8192, prot=mmap.PROT_READ)  # Python's own, of which mmrt knows nothing
os.ftruncate(fd, 0)
view = memoryview(mapping)
assert view[0] == 0
try:
    mapping.verify()
except mmrt.FileError:
    print("told", flush=True)
foreign[0]
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("faulthandler.enable()", ""),
        ("", "faulthandler.enable(); other = mmrt.Mapping(sys.argv[1])"),
    ],
)
def test_faults_of_others_end_as_without_us(tmp_path: Path, before: str, after: str) -> None:
    path = write_file(tmp_path / "file", bytes(2 * 4096))
    done = run(FOREIGN.format(before=before, after=after), path)
    assert done.stdout == "told\n"
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert ("Bus error" in done.stderr) == bool(before or after)
    assert done.stderr.count("Fatal Python error") <= 1
