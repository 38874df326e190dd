"""Draws the loss over the training steps as an SVG file."""

from collections.abc import Sequence
from math import log10

WIDTH, HEIGHT, MARGIN = 640, 320, 48
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def loss_plot(losses: Sequence[tuple[int, float]]) -> str:
    """(step, loss) pairs, the loss on a logarithmic axis."""
    last = max(step for step, _ in losses)
    low, high = min(loss for _, loss in losses) * 0.9, max(loss for _, loss in losses) * 1.1

    def x(step: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * step / last

    def y(loss: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (log10(loss) - log10(low)) / (log10(high) - log10(low))

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">Loss on the answers (cross entropy per token)</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>',
    ]
    for level in GRID:
        if low < level < high:
            lines.append(f'<path d="M{MARGIN} {y(level):.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
            lines.append(f'<text x="{MARGIN - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>')
    for quarter in range(5):
        step = last * quarter // 4
        lines.append(f'<text x="{x(step):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{step}</text>')
    points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in losses)
    lines += [f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="1.5"/>', "</svg>", ""]
    return "\n".join(lines)
