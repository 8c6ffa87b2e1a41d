"""Real models for the tests that need one: found through the environment, else skipped."""

import os
from pathlib import Path

import pytest


def _model(variable: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not path.is_file():
        pytest.skip(f"set {variable} to the path of the GGUF file")
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _model("MMRT_TEST_SMOLLM2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return _model("MMRT_TEST_GEMMA3")
