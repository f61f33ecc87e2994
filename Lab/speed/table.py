"""What was measured, for a reader: tables as wide as their cells need, and prose."""

from __future__ import annotations

import math
from typing import Any

Record = dict[str, Any]

PROSE = """\
IOPS and CPU are Sluice's: requests a second, and microseconds of the whole QEMU process and the back-end for one. /before:
divided by the older Sluice's. /qsd and /QEMU: divided by qemu-storage-daemon's and by those of QEMU's own disk, behind the
same IOMMU. /off: divided by the same disk's without an IOMMU. A variant's columns: its own divided by Sluice's. Medians over
the rounds of each round's ratio (least..most). The second table is what a back-end counted, for one request."""


def number(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point, halves away from zero."""
    if value is None:
        return "-"
    return f"{math.floor(value * 10**digits + 0.5) / 10**digits:.{digits}f}"


def spread(value: Record | None) -> str:
    """The median, and between what all were."""
    return f"{number(value['median'], 2)} ({number(value['min'], 2)}..{number(value['max'], 2)})" if value else "-"


def percent(value: float) -> str:
    """A share."""
    return number(100 * value, 0)


def table(rows: list[list[str]]) -> list[str]:
    """Lines with columns as wide as they need to be, the first two to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]


def _pattern(row: Record) -> list[str]:
    return [row["mode"], f"{row['rw']} {row['block']}", str(row["depth"])]


def comparison(result: Record) -> list[list[str]]:
    """The first table: Sluice's figures, and their ratios to those of other disks, where there were any."""
    rows, names = result["rows"], [disk["name"] for disk in result["disks"]]
    variants = [name for name in names if name not in ("sluice", "before")]
    others = [
        (label, f"to_{key}")
        for label, key, there in (
            ("before", "before", "before" in names),
            ("qsd", "qsd", any(row["to_qsd"]["iops"] for row in rows)),
            ("QEMU", "qemu", any(row["to_qemu"]["iops"] for row in rows)),
        )
        if there
    ]
    off = any(row["to_off"] and row["to_off"]["sluice"] for row in rows)
    own_off = off and any(key == "to_qemu" for _, key in others)

    def ratios(row: Record, keys: list[tuple[str, str]]) -> list[str]:
        return [spread(row[key][kind]) for _, key in keys for kind in ("iops", "cpu")]

    # an older Sluice comes before the variants, other back-ends after them
    older, peers = [pair for pair in others if pair[0] == "before"], [pair for pair in others if pair[0] != "before"]
    head = ["mode", "pattern", "depth", "IOPS", "CPU µs"]
    head += [f"{kind}/{label}" for label, _ in older for kind in ("IOPS", "CPU")]
    head += [f"{kind} {name}" for name in variants for kind in ("IOPS", "CPU")]
    head += [f"{kind}/{label}" for label, _ in peers for kind in ("IOPS", "CPU")]
    head += ["IOPS/off"] * off + ["QEMU's/off"] * own_off
    own = [(f"{one}/{other}", key) for key, one, other in (("vfioblk_to_qemu", "vfioblk", "QEMU"), ("nvme_to_qemunvme", "nvme", "QEMU's"))
           if any(row[key]["iops"] for row in rows)]
    head += [f"{kind} {label}" for label, _ in own for kind in ("IOPS", "CPU")]
    lines = [head]
    for row in rows:
        to_off = row["to_off"] or {"sluice": None, "qemu": None}
        line = [*_pattern(row), number(row["iops"].get("sluice"), 0), number(row["cpu_us"].get("sluice"), 1), *ratios(row, older)]
        line += [spread(row["variants"][name][kind]) for name in variants for kind in ("iops", "cpu")]
        line += ratios(row, peers) + [spread(to_off["sluice"])] * off + [spread(to_off["qemu"])] * own_off
        line += ratios(row, own)
        lines.append(line)
    return lines


def counted(result: Record) -> list[list[str]]:
    """The second table: what a back-end counted, for one request."""
    kinds = ["questions", "invalidations", "waits", "calls"]
    kinds += [kind for kind in ("maps", "unmaps") if any(each[kind] for row in result["rows"] for each in row["each"].values())]
    lines = [["mode", "pattern", "depth", "disk", *kinds]]
    for row in result["rows"]:
        for disk, each in row["each"].items():
            lines.append([*_pattern(row), disk, *(number(each[kind], 3) for kind in kinds)])
    return lines


def report(result: Record) -> str:
    """All of it."""
    storage, waiting, foreign = result["storage"], result["waiting"], result["foreign"]
    every = f" Every disk: {result['disk_options']}." if result["disk_options"] else ""
    lines = [f"Images: {storage['what']}.{every} A turn: {result['seconds']:g} s."]
    for disk in result["disks"]:
        what = [disk["program"]] if disk["name"] == "before" else []
        what += [f"sluice {disk['options']}"] if disk["options"] else []
        what += [f"device {disk['device']}"] if disk["device"] else []
        lines += [f"{disk['name']}: {'; '.join(what)}"] if what else []
    lines += ["", *table(comparison(result)), "", *table(counted(result)), "", PROSE]
    late = ", the late storage among it" if storage["delay_ms"] > 0 else ""
    lines.append(
        f"Of {result['processors']} processors the guests and back-ends that waited used {percent(waiting['median'])} % of one "
        f"(at most {percent(waiting['max'])} %), the rest of the machine"
    )
    lines.append(f"{percent(foreign['median'])} % of one (at most {percent(foreign['max'])} %){late}.")
    if result["stalls"]:
        names = ", ".join(f"{stall['mode']} {stall['target']} {stall['pattern']}" for stall in result["stalls"])
        lines.append(f"Turns that did not end, for any reason: {names}.")
    return "\n".join(lines)
