"""What `sluice explain --json` says about a back-end, as a check and in words."""

from __future__ import annotations

import json
from typing import Any

Figures = dict[str, Any]


def amount(bytes: int) -> str:
    """4096 -> "4 KiB" """
    value, units = float(bytes), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{int(value)} {units[0]}" if value == int(value) else f"{value:.1f} {units[0]}"


def wrong_figures(figures: Figures | None, iommu: str, withheld: bool = False) -> str | None:
    """What is wrong with a sample, taken while a guest with that IOMMU worked; nothing if all is as it must be. `withheld` says that
    the back-end was told to keep VIRTIO_F_ACCESS_PLATFORM to itself."""
    accepted, path = (False, "physical") if iommu == "off" else (True, "platform")
    try:
        return _wrong(figures or {}, accepted, path, not withheld)
    except (KeyError, TypeError):
        return "explain's answer cannot be read"


def _wrong(said: Figures, accepted: bool, path: str, offered: bool) -> str | None:
    if said["access_platform_offered"] != offered:
        return f"ACCESS_PLATFORM was {'not ' if offered else ''}offered"
    if said["access_platform_accepted"] != accepted:
        return f"ACCESS_PLATFORM accepted: {json.dumps(said['access_platform_accepted'])}, expected {json.dumps(accepted)}"
    if said["address_path"] != path:
        return f"the address path is {said['address_path']}, expected {path}"
    if said["faults"] != 0:
        return f"{said['faults']} faults"
    if said["requests"] == 0 or said["completions"] == 0:
        return "no request was counted"
    if said["failed_sessions"] != 0:
        return f"{said['failed_sessions']} connections failed"
    if said["lost_pages"] != 0:
        return f"{said['lost_pages']} pages lost"
    if said["reachable_bytes"] > said["memory_bytes"] or said["peak_reachable_bytes"] > said["memory_bytes"]:
        return "more is reachable than there is"
    if path == "physical" and said["reachable_bytes"] != said["memory_bytes"]:
        return f"without an IOMMU all memory is reachable, not {said['reachable_bytes']}"
    if path == "platform" and said["updates"] == 0:
        return "translated without a single mapping"
    return None


def sample_wrong(figures: Figures | None, name: str, iommu: str) -> str | None:
    """The least that must be true of a back-end at any time: the address path of the mode, no faults, no lost pages."""
    if figures is None:
        return "sluice explain gave no answer"
    if figures["address_path"] != ("physical" if iommu == "off" else "platform"):
        return f"the address path of {name} is {figures['address_path']}"
    if figures["faults"]:
        return f"{figures['faults']} faults"
    if figures["lost_pages"]:
        return f"{figures['lost_pages']} pages lost"
    return None
