"""All rounds: one guest a mode, one turn at a time."""

from __future__ import annotations

import os
import queue
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.guest import Guest
from lab.places import LabError
from lab.processes import Processes

from speed.contender import END, GO_ON, Contender, Event
from speed.figures import result
from speed.options import Options, shown
from speed.samples import Counts, Sample, Turn, sample
from speed.storage import Storage

# A round takes two minutes, three on a machine that has other things to do; all of it is to stay under a quarter of an hour.
ENOUGH = 870


@dataclass(frozen=True)
class Measured:
    """A turn as it was measured; what fio says of it comes when its round has ended."""

    mode: str
    target: str
    pattern: str
    round: int
    used: Sample
    counted: Counts
    # fio's name of it
    name: str


def facts_wrong(guest: Guest, name: str, mode: str) -> str | None:
    """What the guest's kernel says must be what was asked for: a mode that quietly became another one measures nothing."""
    group, translated = {"off": ("none", "no"), "strict": ("DMA", "yes"), "lazy": ("DMA-FQ", "yes"), "pt": ("identity", "yes")}[mode.removeprefix("vfio-")]
    if name.startswith("nvme"):
        translated = "no"
    for key, expected in (("ring", "split"), ("queues", "1"), ("access_platform", translated), ("group", group)):
        said = guest.talk.said(name, key)
        if said != expected:
            return f"{name}: {key} is '{said}', expected '{expected}'"
    return None


@dataclass
class Contest:
    """A run of all rounds."""

    processes: Processes
    options: Options
    work: Path
    storage: Storage
    heard: queue.Queue[Event] = field(default_factory=queue.Queue)
    guests: dict[str, Contender] = field(default_factory=dict)
    # every guest there was, also those that stalled and were replaced
    all: list[Contender] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    stalls: list[dict[str, str]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Runs all rounds, as long as there is time; returns what was measured."""
        try:
            self._rounds()
        except LabError:
            for guest in self.guests.values():
                print("\n".join(guest.last_words()), file=sys.stderr)
            raise
        finally:
            for guest in list(self.guests.values()):
                guest.drop()
        return result(self._setting(), self._turns(), self.stalls, os.cpu_count() or 1)

    def _rounds(self) -> None:
        options, began = self.options, time.monotonic()
        for mode in options.modes:
            self._start(mode, 0)
        for number in range(options.rounds):
            if number and (time.monotonic() - began) * (number + 1) / number > ENOUGH:
                print(f"speed: no time for more than {number} rounds", file=sys.stderr)
                return
            for mode in options.modes:
                if mode not in self.guests:
                    self._start(mode, number)
            for pattern in options.patterns:
                for place in range(len(options.modes)):
                    self._turns_of(options.modes[(place + number) % len(options.modes)], pattern, number)
            print(f"speed: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)

    def _start(self, mode: str, first_round: int) -> None:
        guest = Contender(self.processes, self.options, self.storage, mode, self.work, self.heard)
        self.guests[mode] = guest
        self.all.append(guest)
        guest.start(first_round, facts_wrong)

    def _turns_of(self, mode: str, pattern: str, number: int) -> None:
        """A turn of each disk of a guest; one that stalls takes its guest along."""
        guest = self.guests.get(mode)
        for _ in guest.targets if guest else []:
            assert guest
            if not self._turn(guest, pattern, number):
                guest.kill()
                if not guest.next("end", END):
                    raise LabError(f"the guest for {mode} does not end")
                guest.drop()
                del self.guests[mode]
                return
            guest.left -= 1
            what = "start" if guest.left else "end"
            if not guest.next(what, GO_ON):
                raise LabError(f"the guest for {mode} does not {'go on' if guest.left else 'end'}")
            if not guest.left and guest.disk:
                raise LabError(f"the guest for {mode} failed: {guest.disk}")

    def _turn(self, guest: Contender, pattern: str, number: int) -> bool:
        """One disk's turn in the guest, which waits to begin; afterwards it has been let go on. False: it did not end."""
        disk, target = guest.disk, guest.target
        counted, before = guest.counts(target), self._sample(guest, target)
        guest.go()
        if not guest.next("stop", self.options.patience):
            self.stalls.append({"mode": guest.mode, "target": target, "pattern": pattern})
            print(
                f"speed: {guest.mode}, {target}, {pattern}: no end within {self.options.patience} s; this guest begins anew with "
                "the next round",
                file=sys.stderr,
            )
            return False
        used = self._sample(guest, target) - before
        name = f"{disk}:{pattern}:{number}"
        self.measured.append(Measured(guest.mode, target, pattern, number, used, guest.counts(target) - counted, name))
        guest.go()
        return True

    def _sample(self, guest: Contender, target: str) -> Sample:
        waiting: list[int] = []
        for other in self.guests.values():
            if other is guest:
                waiting += guest.waiting(but=target)
            else:
                waiting += other.waiting() + ([other.machine] if other.machine else [])
        return sample(guest.machine or 0, guest.backend_process(target), waiting)

    def _turns(self) -> list[dict[str, Any]]:
        """Every turn with what fio says of it. Turns of a round that a guest did not finish have nothing and count for nothing."""
        said = {(guest.mode, name): figures for guest in self.all for name, figures in guest.results().items()}
        turns: list[dict[str, Any]] = []
        for each in self.measured:
            if (each.mode, each.name) in said:
                kib, ms = said[each.mode, each.name]
                turns.append(Turn(each.mode, each.target, each.pattern, each.round, each.used, each.counted, kib, ms).json())
        return turns

    def _setting(self) -> dict[str, Any]:
        options = self.options
        disks = [
            {"name": disk.name, "program": str(disk.program), "options": shown(disk.words), "device": disk.device}
            for disk in options.served
        ]
        return {"storage": self.storage.json(), "device": options.disk_options, "seconds": options.seconds, "disks": disks}
