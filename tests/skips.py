"""Counts skipped tests against `allowed_skips.txt`: a test that is skipped tests nothing. Part of
conftest.py; pytest --count-skips, as .ci/run calls it, fails where others were skipped than those.
"""

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("allowed_skips.txt")


def unlisted(skipped: Iterable[tuple[str, str]], allowed: str, root: bool) -> list[str]:
    """Those of `skipped`, tests and reasons, that `allowed`, the text of the list, does not have
    for this user, a line each."""
    rules = [line.split(maxsplit=2) for line in allowed.splitlines() if line[:1] not in ("", "#")]
    return [
        f"{test}: {reason}"
        for test, reason in skipped
        if not any(
            fnmatchcase(test, tests) and fnmatchcase(reason, why) and (who == "all" or not root)
            for who, tests, why in rules
        )
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--count-skips", action="store_true", help=f"fail on skips that {LIST.name} does not have"
    )


def _told(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str]:
    _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, "")
    return report.nodeid, str(reason).removeprefix("Skipped: ")


class Counter:
    """Collects what is skipped, also by a module or fixture, and fails the run for the rest."""

    def __init__(self) -> None:
        self._skipped: list[tuple[str, str]] = []
        self._unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.append(_told(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._skipped.append(_told(report))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._unlisted = unlisted(self._skipped, LIST.read_text(), os.geteuid() == 0)
        if self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._unlisted:
            terminalreporter.section(f"skipped, and not in {LIST.name}")
            for line in self._unlisted:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--count-skips"):
        config.pluginmanager.register(Counter())
