"""The rows that `make try` prints, from what `sluice explain --json` said and from the guest's last report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from lab.figures import Figures, amount
from lab.talk import Talk


def row(title: str, text: str) -> str:
    """A row; no line is longer than 98 columns."""
    lines = textwrap.wrap(text, 85, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(f"{'  ' + title if not number else '':<12} {line}" for number, line in enumerate(lines)).rstrip()


def figure_rows(said: Figures, talk: Talk) -> Iterator[str]:
    """What the back-end said when the guest had unmounted its disk."""
    offered = "offered" if said["access_platform_offered"] else "not offered"
    accepted = said["access_platform_accepted"]
    meaning = "accepted: addresses go through the IOMMU" if accepted else "not accepted: addresses are physical"
    yield row("decision", f"VIRTIO_F_ACCESS_PLATFORM was {offered} and {meaning}")
    yield row("why", said["reason"])
    read, written = amount(said["written_bytes"]), amount(said["readable_bytes"])
    yield row("requests", f"{said['requests']}: {read} read by the guest, {written} written by it")
    peak, memory = said["peak_reachable_bytes"], said["memory_bytes"]
    share = f"{int(peak * 1000 / memory + 0.5) / 10:g} %"
    yield row("exposure", f"{amount(said['reachable_bytes'])} reachable now, {amount(peak)} at most ({share}), of {amount(memory)} of guest memory")
    if said["address_path"] == "platform":
        yield row("mappings", f"{said['updates']} received, {said['invalidations']} invalidations, {said['mappings']} in force now")
    # The guest counts what its kernel logs: up to the driver's first request, and from then on.
    early, late = int(talk.last("early_faults") or 0), int(talk.last("faults") or 0)
    why = ", before the driver's first request: QEMU's look at a ring of the firmware, see README" if early else ""
    yield row("faults", f"{said['faults']} reported by Sluice; {early + late} in the guest's log{why}")
