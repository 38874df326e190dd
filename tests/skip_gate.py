"""A pytest plugin: a skipped test fails the run unless `skips.txt` lists it with a reason."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("skips.txt")


def allowed_skips() -> list[tuple[str, str]]:
    """(node id pattern, reason) of the skips that are expected somewhere."""
    lines = (line.strip() for line in LIST.read_text().splitlines())
    pairs = (line.split("|") for line in lines if line and not line.startswith("#"))
    return [(pattern.strip(), reason.strip()) for pattern, reason in pairs]


def reason_of(report: pytest.TestReport) -> str:
    """The words that the test gave for skipping."""
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")


class SkipGate:
    def __init__(self) -> None:
        self._allowed = allowed_skips()
        self._unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not self._is_allowed(report):
            self._unlisted.append(report.nodeid)

    def _is_allowed(self, report: pytest.TestReport) -> bool:
        return any(fnmatchcase(report.nodeid, pattern) and reason == reason_of(report) for pattern, reason in self._allowed)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in self._unlisted:
            terminalreporter.line(f"SKIP NOT LISTED in tests/skips.txt: {nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(), "skip-gate-session")
