"""A pytest plugin: a skipped test fails the run unless `skips.txt` lists it with its reason.

Tests that need the folder of real data skip without it, and the run says in its last lines how many did. Where `CI` is set
and the folder is there, or was named, such a skip fails the run as well.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("skips.txt")
DATA_ABSENT = "test data folder is absent"


def data_folder() -> Path:
    """The folder with real tokenizers, configs and a real small model; `TEST_DATA_DIR` names it."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("TEST_DATA_DIR", beside))


def must_have_data() -> bool:
    """Whether this run has no excuse for tests without their data."""
    return bool(os.environ.get("CI")) and ("TEST_DATA_DIR" in os.environ or data_folder().is_dir())


def allowed_skips() -> list[tuple[str, str]]:
    """(node id pattern, reason) of the skips that are expected somewhere."""
    lines = (line.strip() for line in LIST.read_text().splitlines())
    pairs = (line.split("|", 1) for line in lines if line and not line.startswith("#"))
    return [(pattern.strip(), reason.strip()) for pattern, reason in pairs]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The words that the test gave for skipping."""
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")


class SkipGate:
    """Notes the skips of one run that nobody allowed."""

    def __init__(self) -> None:
        self._allowed = allowed_skips()
        self._unlisted: list[str] = []
        self._num_without_data = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._judge(report)  # a module that skips itself runs no test that could be reported

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        reason = reason_of(report)
        self._num_without_data += reason == DATA_ABSENT
        if reason == DATA_ABSENT and must_have_data():
            self._unlisted.append(f"{report.nodeid} | {reason} (CI is set, and so is the folder: {data_folder()})")
        elif not any(fnmatchcase(report.nodeid, pattern) and reason == allowed for pattern, allowed in self._allowed):
            self._unlisted.append(f"{report.nodeid} | {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._num_without_data:
            terminalreporter.line(
                f"WITHOUT DATA: {self._num_without_data} tests were skipped for want of {data_folder()}; TEST_DATA_DIR names another folder"
            )
        for line in self._unlisted:
            terminalreporter.line(f"SKIP NOT LISTED in tests/skips.txt: {line}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(), "skip-gate-session")
