"""A pytest plugin: a skipped test fails the run unless `skips.txt` lists it with a reason."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("skips.txt")


def allowed_skips() -> list[str]:
    """The glob patterns of node ids that may skip."""
    lines = (line.strip() for line in LIST.read_text().splitlines())
    return [line.split("|")[0].strip() for line in lines if line and not line.startswith("#")]


class SkipGate:
    def __init__(self) -> None:
        self._patterns = allowed_skips()
        self._unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not any(fnmatchcase(report.nodeid, pattern) for pattern in self._patterns):
            self._unlisted.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in self._unlisted:
            terminalreporter.line(f"SKIP NOT LISTED in tests/skips.txt: {nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(), "skip-gate-session")
