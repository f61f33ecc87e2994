"""Bars from what Scripts/speed --json says: requests a second of every disk, a group for each mode and pattern.

    Scripts/python speed.picture RESULT >PICTURE.svg"""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "before": "an older Sluice", "sluice": "Sluice", "noind": "Sluice, indirect_desc=off", "qsd": "qemu-storage-daemon",
    "qemu": "QEMU's own disk",
}
COLOURS = {"before": "#b9c6d2", "sluice": "#2f6f9f", "noind": "#1f9d77", "qsd": "#8a8a8a", "qemu": "#d9a441"}
# the place of the bars, their longest and their height
LEFT, WIDE, BAR = 190, 470, 13


def picture(result: dict[str, Any]) -> str:
    """The picture as SVG."""
    rows = result["rows"]
    names = [disk["name"] for disk in result["disks"]]
    names += sorted({name for row in rows for name in row["iops"]} - set(names))
    order = {name: place for place, name in enumerate(NAMES)}
    disks = sorted(names, key=lambda name: order.get(name, len(order)))
    most = max(value for row in rows for value in row["iops"].values())
    group = len(disks) * BAR + 14
    high = 52 + len(rows) * group + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {high}" font-family="sans-serif" font-size="12" role="img">',
        "<title>Requests a second in a guest behind VT-d, by mode, pattern and disk</title>",
        f'<rect width="760" height="{high}" fill="#ffffff"/>',
    ]
    for place, name in enumerate(disks):
        said = html.escape(NAMES.get(name, name), quote=False)
        parts.append(
            f'<rect x="{12 + place * 185}" y="14" width="12" height="12" fill="{COLOURS.get(name, "#666")}"/>'
            f'<text x="{29 + place * 185}" y="24" fill="#222">{said}</text>'
        )
    for index, row in enumerate(rows):
        top = 46 + index * group
        middle = top + len(disks) * BAR / 2 + 4
        parts.append(f'<text x="12" y="{middle:g}" fill="#222">{row["mode"]}, {row["rw"]} {row["block"]}, {row["depth"]}</text>')
        for place, name in enumerate(disks):
            if name in row["iops"]:
                parts.append(_bar(name, row["iops"][name], most, top + place * BAR))
    return "\n".join([*parts, "</svg>"])


def _bar(name: str, iops: float, most: float, top: int) -> str:
    width = iops / most * WIDE
    return (
        f'<rect x="{LEFT}" y="{top}" width="{round(width, 1):g}" height="{BAR - 2}" fill="{COLOURS.get(name, "#666")}"/>'
        f'<text x="{round(LEFT + width + 5)}" y="{top + 10}" font-size="10" fill="#444">{round(iops)}</text>'
    )


if __name__ == "__main__":
    print(picture(json.loads(Path(sys.argv[1]).read_text())))
