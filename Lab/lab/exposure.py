"""Exposure over time: a small picture a system, in one SVG. The scale is logarithmic: a strict IOMMU and none are four orders of magnitude
apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .job import Row

WIDTH, HEIGHT, LEFT, TOP, ACROSS, DECADES = 290, 110, 56, 34, 3, 5.3
STEP_X, STEP_Y = WIDTH + 84, HEIGHT + 74
LINES, INK, CURVE = "#d8e0e8", "#33475b", "#1f6fb2"


def _y(percent: float) -> float:
    return HEIGHT * (2 - math.log(max(percent, 0.0005)) / math.log(10)) / DECADES


class Curve:
    """What could be reached when, of one system: seconds and shares in percent."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.points: list[tuple[float, float]] = []

    def picture(self, number: int) -> list[str]:
        """The picture, at its place among the others."""
        longest, most = max(when for when, _ in self.points), max(share for _, share in self.points)
        span = longest if longest > 0 else 1
        step = 20 if span > 40 else 10 if span > 16 else 5 if span > 6 else 1
        lines = [f'<g transform="translate({LEFT + number % ACROSS * STEP_X} {TOP + number // ACROSS * STEP_Y})">',
                 f'<text x="0" y="-10" font-size="13" font-weight="bold" fill="{INK}">{self.title}</text>',
                 f'<text x="{WIDTH}" y="-10" text-anchor="end" fill="{INK}">at most {f"{most:.0f}" if most >= 10 else f"{most:.3f}"} %</text>']
        for decade in range(2, -4, -1):
            percent = 10.0 ** decade
            lines.append(f'<line x1="0" x2="{WIDTH}" y1="{_y(percent):.1f}" y2="{_y(percent):.1f}" stroke="{LINES}"/>'
                         f'<text x="-6" y="{_y(percent) + 4:.1f}" text-anchor="end" fill="{INK}">{percent:g} %</text>')
        for second in range(0, math.floor(span) + 1, step):
            lines.append(f'<text x="{WIDTH * second / span:.1f}" y="{HEIGHT + 18}" text-anchor="middle" fill="{INK}">{second}{"" if second else " s"}</text>')
        path = ""
        for when, share in self.points:
            x = WIDTH * when / span
            # what was asked at a moment holds until the next
            path += f"H{x:.1f}V{_y(share):.1f}" if path else f"M{x:.1f} {_y(share):.1f}"
        return [*lines, f'<path d="{path}" fill="none" stroke="{CURVE}" stroke-width="1.6" stroke-linejoin="round"/>', "</g>"]


def exposure(samples: Sequence[Row]) -> str:
    """The picture of the samples of a run."""
    curves: dict[str, Curve] = {}
    first: dict[str, int] = {}
    for sample in samples:
        if sample["bit"] == "on" and sample["connected"] and sample["memory_bytes"] > 0:
            system, at = sample["system"], sample["at"]
            curve = curves.setdefault(system, Curve(sample["title"]))
            curve.points.append(((at - first.setdefault(system, at)) / 1000, sample["reachable_bytes"] * 100 / sample["memory_bytes"]))
    rows = -(-len(curves) // ACROSS)
    width, height = LEFT + ACROSS * STEP_X - 10, rows * STEP_Y + 16
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
             'font-family="Helvetica, Arial, sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>']
    for number, curve in enumerate(curves.values()):
        lines += curve.picture(number)
    return "\n".join([*lines, "</svg>"]) + "\n"
