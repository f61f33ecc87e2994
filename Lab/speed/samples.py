"""What a turn costs: processor time of QEMU, of the back-end, of all that waits and of the machine; and what a back-end counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lab.figures import Figures


@dataclass(frozen=True)
class Counts:
    """What a Sluice counted so far; of other back-ends nothing."""

    misses: int = 0
    questions: int = 0
    invalidations: int = 0
    calls: int = 0
    waits: int = 0
    requests: int = 0
    maps: int = 0
    unmaps: int = 0

    @staticmethod
    def of(said: Figures | None) -> Counts:
        """From what `sluice explain --json` says; an older one may not count all of it."""
        if said is None:
            return Counts()
        queue = (said.get("queues") or [{}])[0]
        names = ("misses", "questions", "invalidations", "requests", "maps", "unmaps")
        return Counts(calls=queue.get("calls") or 0, waits=queue.get("waits") or 0, **{name: said.get(name) or 0 for name in names})

    def __sub__(self, before: Counts) -> Counts:
        return Counts(**{each.name: getattr(self, each.name) - getattr(before, each.name) for each in fields(self)})


@dataclass(frozen=True)
class Sample:
    """Processor time in hundredths of a second, and the time in seconds."""

    machine: int
    backend: int
    # every other guest and back-end
    waiting: int
    # all that the machine did, and what was stolen from it
    all: int
    time: float

    def __sub__(self, before: Sample) -> Sample:
        return Sample(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Turn:
    """A turn of one disk, with what was measured around it and what fio says of it."""

    mode: str
    target: str
    pattern: str
    round: int
    used: Sample
    counted: Counts
    kib: int
    ms: int

    def json(self) -> dict[str, Any]:
        """The turn for a machine, with what follows from it: requests a second, and microseconds of a processor for one."""
        rw, block, depth = self.pattern.split(":")
        requests = self.kib / int(block.removesuffix("k"))
        machine, backend = self.used.machine / 100, self.used.backend / 100
        waiting, all_of_it = self.used.waiting / 100, self.used.all / 100
        return {
            **{"mode": self.mode, "target": self.target, "rw": rw, "block": block, "depth": int(depth), "round": self.round},
            **{"qemu_s": machine, "backend_s": backend, "waiting_s": waiting, "machine_s": all_of_it, "wall_s": self.used.time},
            **{each.name: getattr(self.counted, each.name) for each in fields(self.counted)},
            **{"kib": self.kib, "ms": self.ms, "ios": requests, "iops": 1000 * requests / self.ms},
            "cpu_us": 1e6 * (machine + backend) / requests,
            "foreign": (all_of_it - machine - backend - waiting) / self.used.time,
        }


def ticks(process: int) -> int:
    """The processor time of a process; 0 for one that is gone."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return int(words[11]) + int(words[12])


def sample(machine: int, backend: int | None, waiting: list[int]) -> Sample:
    """A sample around a turn: of QEMU, of the back-end if there is one, and of the processes that wait."""
    cpu = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, soft, stolen = cpu
    return Sample(
        ticks(machine), ticks(backend) if backend else 0, sum(map(ticks, waiting)), user + nice + system + irq + soft + stolen,
        time.time(),
    )
