"""A table and a plot of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

HEAD = f"{'':<70} {'error':>9} {'us':>10} {'floor us':>10} {'share':>6} {'bound':<10} {'torch us':>10} {'times':>6} {'by':<9}"


@dataclass
class Row:
    """A line of the table; times in microseconds. `rival_name` says which of torch's ways was timed."""

    case: str
    error: float | None = None
    taken: float | None = None
    floor: float | None = None
    bound: str = ""
    share: float | None = None
    rival: float | None = None
    rival_name: str = ""
    failure: str = ""


def line(row: Row) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    beside = "-" if row.rival is None or row.taken is None else f"{row.rival / row.taken:.2f}"
    share = "-" if row.share is None else f"{row.share:.0%}"
    return (
        f"{row.case:<70} {number(row.error, 5):>9} {number(row.taken, 1):>10} {number(row.floor, 1):>10} {share:>6}"
        f" {row.bound:<10} {number(row.rival, 1):>10} {beside:>6} {row.rival_name:<9} {row.failure}"
    )


def plot(rows: Sequence[Row]) -> str:
    """Bars: how much of what the GPU can do each kernel reaches."""
    shown = [row for row in rows if row.share is not None]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{24 * len(shown) + 40}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(
        '<rect width="100%" height="100%" fill="white"/><text x="8" y="18">share of the floor: bytes blue, operations orange</text>'
    )
    for index, row in enumerate(shown):
        y, width = 30 + 24 * index, min(row.share or 0, 1.2) * 400
        color = "#d97706" if row.bound == "operations" else "#2563eb"
        parts.append(
            f'<text x="8" y="{y + 14}">{row.case}</text><rect x="400" y="{y}" width="{width:.1f}" height="18" fill="{color}"/>'
        )
        parts.append(f'<text x="{404 + width:.1f}" y="{y + 14}">{row.share:.0%}</text>')
    return "\n".join([*parts, "</svg>\n"])
