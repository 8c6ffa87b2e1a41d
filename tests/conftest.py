"""What every test runs with: the installed mmrt, and the real models named in the environment."""

import os
import pty
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
START = Path.cwd()

# `python -m pytest` has Python look for modules in the clone first, whose mmrt/ is source without
# its compiled parts. What is installed goes before it: here and, as the tests run elsewhere, in
# the processes that they start. The clone is still the place of bench/.
if str(ROOT) in sys.path:
    sys.path.remove(str(ROOT))
sys.path.append(str(ROOT))

import fetch_models  # noqa: E402  as these import mmrt
from instruction_sets import ISAS  # noqa: E402
from skips import pytest_addoption, pytest_configure  # noqa: E402, F401

REAL_MODELS = {"smollm2_path", "gemma3_path", "coder_path", "real_path"}

# Asked for at once: tests set caches of their own.
CACHED = fetch_models.cached()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not REAL_MODELS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("real_model")


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(START)


def _model(variable: str) -> Path:
    """The model that `variable` names, or the one in the cache. Without either, or with an empty
    name, the test is skipped; it fails if there is no such file.
    """
    name = os.environ.get(variable, CACHED.get(variable))
    if not name:
        pytest.skip(f"{variable} is not set: see tests/fetch_models.py")
    path = START / name
    assert path.is_file(), f"{variable}={path}: there is no such file"
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _model("MMRT_TEST_SMOLLM2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return _model("MMRT_TEST_GEMMA3")


@pytest.fixture(scope="session")
def coder_path() -> Path:
    return _model("MMRT_TEST_CODER")


@pytest.fixture(params=["smollm2", "gemma3"])
def real_path(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    path: Path = request.getfixturevalue(f"{request.param}_path")
    return path


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that can run here, in force."""
    monkeypatch.setenv("MMRT_ISA", request.param)
    return str(request.param)


@pytest.fixture
def forking_is_meant() -> Iterator[None]:
    """Python warns of a fork while there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: ours, and the one for a process."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)
