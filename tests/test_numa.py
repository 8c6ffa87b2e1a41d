"""Memory nodes."""

import re

import pytest
from numa import guest

# ---- two nodes, in a guest ----

GUEST_TESTS = re.findall(r"^TEST\((\w+)\)", guest.SOURCE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the guest said."""
    try:
        return guest.run(tmp_path_factory.mktemp("guest"))
    except guest.Absent as reason:
        pytest.skip(f"no guest of two nodes: {reason}")


@pytest.mark.parametrize("name", GUEST_TESTS)
def test_on_two_nodes(name: str, console: str) -> None:
    assert re.search(rf"^ok \d+ - {name}\r?$", console, re.MULTILINE), console
