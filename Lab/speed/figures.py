"""From the turns and what was set, what was measured: {storage, disks, turns, rows, ...}."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Measure = Callable[[Record], float]


def spread(values: Iterable[float]) -> Record | None:
    """The median, the least and the most; nothing of nothing."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def ratio(one: list[Record], other: list[Record], measure: Measure) -> Record | None:
    """Of two series, round by round."""
    return spread(measure(x) / measure(y) for x in one for y in other if x["round"] == y["round"] and measure(y))


def iops(turn: Record) -> float:
    """Requests a second."""
    return float(turn["iops"])


def cpu(turn: Record) -> float:
    """Microseconds of QEMU and the back-end for a request."""
    return float(turn["cpu_us"])


def backend(turn: Record) -> float:
    """Microseconds of the back-end for a request."""
    return float(1e6 * turn["backend_s"] / turn["ios"])


@dataclass(frozen=True)
class Table:
    """The turns, and the disks of Sluice by name."""

    turns: list[Record]
    served: list[str]

    def rows(self) -> list[Record]:
        """A row for each mode and pattern, in the order in which they first had a turn."""
        keys = dict.fromkeys((turn["mode"], turn["rw"], turn["block"], turn["depth"]) for turn in self.turns)
        return [self._row(*key) for key in keys]

    def _row(self, mode: str, rw: str, block: str, depth: int) -> Record:
        def pick(mode: str, target: str) -> list[Record]:
            wanted = (mode, target, rw, block, depth)
            return [turn for turn in self.turns if wanted == tuple(turn[key] for key in ("mode", "target", "rw", "block", "depth"))]

        def median(target: str, measure: Measure) -> float | None:
            values = [measure(turn) for turn in pick(mode, target)]
            return statistics.median(values) if values else None

        def to(one: str, other: str) -> Record:
            pair = pick(mode, one), pick(mode, other)
            return {"iops": ratio(*pair, iops), "cpu": ratio(*pair, cpu)}

        def by_disk(names: list[str], value: Callable[[str], Any]) -> Record:
            return {name: said for name in names if (said := value(name)) is not None}

        every = [*self.served, "qsd", "qemu", "qemunvme"]
        return {
            **{"mode": mode, "rw": rw, "block": block, "depth": depth},
            "iops": by_disk(every, lambda name: median(name, iops)),
            "cpu_us": by_disk(every, lambda name: median(name, cpu)),
            "backend_us": by_disk([*self.served, "qsd"], lambda name: median(name, backend)),
            "to_before": to("sluice", "before"),
            "to_qsd": to("sluice", "qsd"),
            "to_qemu": to("sluice", "qemu"),
            # what is served over vfio-user, and the same of QEMU's own
            "vfioblk_to_qemu": to("vfioblk", "qemu"),
            "nvme_to_qemunvme": to("nvme", "qemunvme"),
            "variants": {name: to(name, "sluice") for name in self.served if name not in ("sluice", "before")},
            "to_off": None if mode in ("off", "vfio-off") else {
                name: ratio(pick(mode, name), pick("vfio-off" if mode.startswith("vfio-") else "off", name), iops) for name in every
            },
            "each": by_disk(self.served, lambda name: _each(pick(mode, name))),
        }


def _each(turns: list[Record]) -> Record | None:
    """What a back-end counted, for one request."""
    # a controller that is not virtio counts none itself
    requests = sum(turn["requests"] or (turn["ios"] if turn["maps"] else 0) for turn in turns)
    if not requests:
        return None
    return {name: sum(turn[name] for turn in turns) / requests for name in ("questions", "invalidations", "calls", "waits", "maps", "unmaps")}


def result(setting: Record, turns: list[Record], stalls: list[Record], processors: int) -> Record:
    """All that was measured. `setting` says what the storage was, the options of every disk, the seconds of a turn and the disks
    of Sluice."""
    for turn in turns:
        if not turn["kib"] or not turn["ms"]:
            raise ValueError(f"no figure for a turn of {turn['mode']} {turn['target']}")
    return {
        "storage": setting["storage"],
        "disk_options": setting["device"],
        "seconds": setting["seconds"],
        "disks": setting["disks"],
        "turns": turns,
        "processors": processors,
        "stalls": stalls,
        "waiting": spread(turn["waiting_s"] / turn["wall_s"] for turn in turns),
        "foreign": spread(turn["foreign"] for turn in turns),
        "rows": Table(turns, [disk["name"] for disk in setting["disks"]]).rows(),
    }
