"""The lab's rows as tables, for a terminal and for Documentation/lab.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .job import Row

SYSTEM_HEAD = "system|front-end|device|bit 33|ring|negotiated|path|requests|verified|faults|exposure|s|verdict".split("|")
MOVED_HEAD = "what happens|VT-d|how|acknowledged|looks|faults|wrong|s|verdict".split("|")
SYSTEM_RULE = "|---|---|---|---|---|---|---|--:|--:|--:|--:|--:|---|"
MOVED_RULE = "|---|---|---|--:|--:|--:|--:|--:|---|"

SYSTEMS_TEXT = """\
# The lab

Written by `make lab`, which runs every system below against Sluice and writes this page anew. Everything is emulated (TCG) and comes from Debian; a row is one device in one run.

* **bit 33**: was VIRTIO_F_ACCESS_PLATFORM offered to the guest. **negotiated**: the feature bits as the guest reads them; the back-end's own account of them is compared with it, and a row with a difference fails.
* **device**: *blk (firmware)* is the boot disk while UEFI firmware drives it, *blk (Linux)* the same disk afterwards; *blk (process)* a disk that the guest gave to a process of its own through vfio-pci; *blk (outside)* the same process with buffers it never mapped, no longer maps, or mapped for the other direction only: every such request must fail, the faults are those, and not a byte may move.
* With QEMU 10 and 11 the entropy device's back-end is told to withhold bit 33 where it is off (`--access-platform off`): these pass on to the guest whatever a back-end offers, and then do not translate.
* **path**: how the back-end takes addresses. *physical* with the bit on means that there is nothing in front of the device to translate: QEMU then keeps the bit to itself.
* **verified**: bytes of the disk whose checksum was right on both sides. The guest read the host's half of the disk and wrote its own, which the host looked at when the guest was gone; of entropy, bytes that arrived.
* **vfio-user**: the function itself is Sluice's, in a QEMU that has vfio-user-pci, and every access of it goes through that QEMU's IOMMU, whatever the function offers. So NVMe, which has no bit 33, is confined as virtio is. *(refused)*: with bit 33 off behind an IOMMU, Linux gives virtio physical addresses, and so does a program in the guest that looks at its own buffer: every access must be refused, and not a byte may move, in the image or in the buffer; the faults are those. *Memory without descriptor* is memory that the server never maps: each access is a message that QEMU checks. *Server taken over*: something between it and QEMU asks for addresses that the guest has not mapped, for its kernel's among them, to read and to write: QEMU refuses every one, and the faults are those that the guest's kernel printed.
* **exposure**: the most of the guest's memory that the back-end could reach at any moment; over vfio-user, at any moment of the guest's workload, for before its kernel has set the IOMMU up, and when it has switched it off, all of memory is mapped.
* **s**: from QEMU's start to its end, on a machine with other things to do; it orders nothing.

"""
EXPOSURE_TEXT = """
## Exposure over time
How much of the guest's memory the back-end of the split disk could reach, asked with `sluice explain --json` five times a second while the guest read, wrote and checked its disk, with the bit on.

![Exposure over time, a picture for each kind of IOMMU](diagrams/exposure.svg)
"""
MOVED_TEXT = """
## Events under a running back-end
An x86-64 machine each, whose guest writes from up to 32 threads all the time: windows of blocks, overwritten in order with numbers that only grow, so that of a window exactly one state is possible for a newest number. QEMU's own tests drive the disk themselves and have no guest.

* **acknowledged**: writes that the guest was told are done, all of them looked for in the image when the guest was gone, and by every driver that came after the one that wrote.
* **looks**: how often the guest looked at memory that the disk had read into, and found it as it was.
* **faults**: of the back-end, and of the guest's IOMMU. **wrong**: blocks lost, stale, torn, repeated, late or out of order, on the disk or in memory.

"""


def rounded(value: float) -> int:
    """To the nearest whole number, halves up."""
    return math.floor(value + 0.5)


def _amount(bytes: int | None) -> str:
    if not bytes:
        return ""
    return f"{bytes >> 20} MiB" if bytes >= 1 << 20 else f"{bytes >> 10} KiB"


def percent(value: float | None) -> str:
    """10.4 -> "10 %", 0.0123 -> "0.012 %" """
    if value is None:
        return ""
    return f"{rounded(value)} %" if value >= 10 else f"{rounded(value * 1000) / 1000:g} %"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _cells(cells: Sequence[str]) -> list[str]:
    return [cell or "–" for cell in cells]


def system_cells(row: Row) -> list[str]:
    """The cells of a device's row."""
    return _cells([row["title"], row["front_end"], row["device"], row["bit"], row["ring"], " ".join(map(str, row["negotiated"])), row["path"],
                   _count(row["requests"]), _amount(row["bytes_verified"]), _count(row["faults"]), percent(row["exposure_percent"]),
                   str(math.floor(row["seconds"])), row["verdict"]])


def moved_cells(row: Row) -> list[str]:
    """The cells of an adverse job's row."""
    return _cells([row["title"], row["iommu"], row["done"], *(str(row[key]) for key in ("acknowledged", "looks", "faults", "wrong")),
                   str(math.floor(row["seconds"])), row["verdict"]])


def system_reasons(rows: Sequence[Row]) -> list[str]:
    """Why devices' rows are not ok."""
    return [f"{row['title']}, {row['front_end']}, {row['device']}{', bit 33 ' + row['bit'] if row['bit'] else ''}"
            f"{', ' + row['ring'] if row['ring'] else ''}: {row['verdict']}: {row['reason']}" for row in rows if row["reason"]]


def moved_reasons(rows: Sequence[Row]) -> list[str]:
    """Why adverse jobs' rows are not ok."""
    return [f"{row['title']}, VT-d {row['iommu']}: {row['verdict']}: {row['reason']}" for row in rows if row["reason"]]


def terminal(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns as wide as they need to be."""
    widths = [max(len(cells[number]) for cells in [head, *rows]) for number in range(len(head))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() + "\n" for cells in [head, *rows])


def _markdown(head: Sequence[str], rule: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _sum(rows: Sequence[Row]) -> str:
    ok, failed, not_run = (sum(row["verdict"] == verdict for row in rows) for verdict in ("ok", "failed", "not run"))
    others = len(rows) - ok - failed - not_run
    return f"\n{ok} rows ok, {failed} failed, {f'{others} as expected, ' if others else ''}{not_run} not run.\n"


def systems_terminal(rows: Sequence[Row]) -> str:
    """The systems for a terminal, which has no room for the negotiated bits; then what was wrong."""
    def narrow(cells: Sequence[str]) -> list[str]:
        return [*cells[:5], *cells[6:]]
    return terminal(narrow(SYSTEM_HEAD), [narrow(system_cells(row)) for row in rows]) + "".join(f"{line}\n" for line in system_reasons(rows))


def moved_terminal(rows: Sequence[Row]) -> str:
    """The adverse jobs for a terminal; then what was wrong."""
    return terminal(MOVED_HEAD, [moved_cells(row) for row in rows]) + "".join(f"{line}\n" for line in moved_reasons(rows))


def page(systems: Sequence[Row], moved: Sequence[Row], picture: bool) -> str:
    """Documentation/lab.md. A run of systems without a guest has no picture."""
    reasons = system_reasons(systems)
    text = SYSTEMS_TEXT + _markdown(SYSTEM_HEAD, SYSTEM_RULE, [system_cells(row) for row in systems]) + _sum(systems)
    if reasons:
        text += "\n## What failed, cannot work or did not run\n" + "".join(f"* {reason}\n" for reason in reasons)
    text += EXPOSURE_TEXT if picture else ""
    text += MOVED_TEXT + _markdown(MOVED_HEAD, MOVED_RULE, [moved_cells(row) for row in moved]) + _sum(moved)
    return text + "".join(f"{'' if number else chr(10)}* {reason}\n" for number, reason in enumerate(moved_reasons(moved)))
