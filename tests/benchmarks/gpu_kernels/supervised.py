"""Runs the cases in processes that may be lost: a kernel that hangs, or leaves the GPU unusable, costs its own row only.

A process tells lines of JSON: first `{"header": ..}`, then `{"row": ..}` for one case after the other. Where it ends too early or tells
no row in time, another one goes on with the next case. Other lines, which kernels may print, go to stderr. Knows neither kernels nor GPUs.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpu_kernels.report import Row

LOST = 3
"""What a process exits with that told a row, but cannot run another case."""


@dataclass(frozen=True)
class Limits:
    """Seconds for one case with its compilation (the first of a process with the start), and for all of them together."""

    case: float
    total: float


@dataclass
class Record:
    """What was told: facts about the machine (None: no process got as far), and the rows so far."""

    header: dict[str, Any] | None = None
    rows: list[Row] = field(default_factory=list)


def tell(what: Row | dict[str, Any]) -> None:
    """A process's next line, also where a kernel has printed half of one."""
    print("\n" + json.dumps({"row": asdict(what)} if isinstance(what, Row) else {"header": what}), flush=True)


def supervise(command: Sequence[str], names: Sequence[str], *, limits: Limits, on_row: Callable[[Row], None]) -> Record:
    """A row for every case of `names`, each handed to `on_row` at once; `command` is given the index of its first case."""
    record, deadline = Record(), time.monotonic() + limits.total

    def take(told: dict[str, Any]) -> None:
        record.header = told.get("header", record.header)
        if "row" in told:
            record.rows.append(Row(**told["row"]))
            on_row(record.rows[-1])

    while len(record.rows) < len(names):
        begin, outcome = len(record.rows), "not reached in time"
        if time.monotonic() < deadline:
            outcome = follow([*command, str(begin)], take, limits=limits, deadline=deadline)
        if outcome is None and len(record.rows) == begin:
            outcome = "its process told nothing"
        if outcome is not None and len(record.rows) < len(names):
            take({"row": asdict(Row(names[len(record.rows)], failure=outcome))})
        if record.header is None:
            break
    return record


def follow(command: Sequence[str], take: Callable[[dict[str, Any]], None], *, limits: Limits, deadline: float) -> str | None:
    """Take what one process tells until it ends; gives what became of the case that it told nothing about, if there is one."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        case_deadline = time.monotonic() + limits.case
        while True:
            left = min(case_deadline, deadline) - time.monotonic()
            line = _next(lines, timeout=max(left, 0))
            if line is None:
                break
            if (told := _told(line)) is not None:
                take(told)
                if "row" in told:
                    case_deadline = time.monotonic() + limits.case
            elif left <= 0 or not line:
                process.kill()
                reader.join()  # else the stream is closed while it reads
                return "not reached in time" if deadline < case_deadline else f"ended after {limits.case:.0f} s"
            elif line.strip():
                sys.stderr.write(line)
    return None if process.returncode in (0, LOST) else f"its process ended with {process.returncode}"


def _next(lines: "queue.Queue[str | None]", *, timeout: float) -> str | None:
    """None where the process has ended, "" where there is none in time."""
    try:
        return lines.get(timeout=timeout)
    except queue.Empty:
        return ""


def _told(line: str) -> dict[str, Any] | None:
    """What `tell` wrote; None for a line of anyone else's, as a kernel that prints."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and told.keys() in ({"header"}, {"row"}) else None


def _read(stream: Iterable[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)
