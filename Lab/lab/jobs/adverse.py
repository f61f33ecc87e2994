"""Jobs in which something happens to a running back-end or its guest. Each is a row of events.jsonl besides its own.

The witness is Tests/Guests/sequence.c: windows of blocks overwritten in order, so that what is lost, late, torn or done twice shows, and
memory that was filled from the disk and is looked at for as long as the guest runs."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from ..backend import read_figures
from ..figures import sample_wrong
from ..job import FAILED, OK, SKIPPED, Job, Row, append_row, wrong_unless
from ..monitor import Machine, MonitorDisk
from ..places import MIB, Skipped, Wrong, empty_image, part_sum
from ..talk import Talk
from ..witness import check


class AdverseJob(Job):
    """One machine with one disk on one back-end, and something that is done to it in `move`. Afterwards the guest's own verdict must be
    good, and the image hold all that was acknowledged. The argument is the IOMMU: off or strict."""

    title = ""                 # what happens; the row's name is the mode and this
    threads = 16               # of the guest's, that write
    usual_turns = 10           # how often it happens, where TURNS does not say
    reconnect = False          # QEMU looks for the back-end again

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mode = self.argument
        self.turns = self.settings.turns or self.usual_turns
        self.ends = self.backends()
        self.image = self.folder / "disk.img"
        self.machine = Machine(self.processes, self.folder, self.mode or "off", self.seconds_allowed())
        self.turn = 0

    def seconds_allowed(self) -> float:
        """How long the machine may run."""
        return self.limit

    def move(self) -> None:
        """Does it; raises Wrong at the first thing that is not as it must be."""
        raise NotImplementedError

    def done(self) -> str:
        """What was done, in words."""
        raise NotImplementedError

    def work(self) -> None:
        try:
            if self.settings.backend == "qemu" or not self.able(self.mode):
                raise Skipped(f"{self.settings.backend} cannot")
            self.prepare()
        except Skipped as skipped:
            self.row(SKIPPED, self.full_title, str(skipped))
            self.keep_row("not run", "", str(skipped))
            return
        reason, figures = None, ""
        try:
            self.move()
            self.last_word()
        except Wrong as wrong:
            reason = str(wrong)
        self.end_machines()
        for name in self.ends.all:
            reason = reason or self.ends.stop(name)
        wrong_image, figures = self.judge()
        self.report(reason or wrong_image, figures)

    def prepare(self) -> None:
        """What has to be there; raises Skipped where it cannot be had."""

    def last_word(self) -> None:
        """The guest's own end and verdict."""
        if not self.machine.ended(60):
            raise Wrong("the guest did not end")
        if self.machine.talk.verdict != "ok":
            raise Wrong(f"the guest's verdict is '{self.machine.talk.verdict}'")

    def end_machines(self) -> None:
        """Ends what still runs."""
        self.machine.drop()

    def judge(self) -> tuple[str | None, str]:
        """What is wrong with the image, and the witness's figures."""
        return self.judged("vda", self.image, self.machine.talk)

    @property
    def full_title(self) -> str:
        """The row's name."""
        return f"{self.mode} {self.title}"

    def begin(self, words: str, boot: Path | None = None, more_memory: str = "") -> MonitorDisk:
        """Starts the back-end and the machine."""
        empty_image(self.image, 64 * MIB)
        disk = MonitorDisk(0, self.ends.start_disk("disk", self.image, 1), self.mode, self.reconnect)
        self.machine.start(words, disk.options(), boot, more_memory)
        return disk

    def wait_for_turn(self, reason: str, acknowledged: int, seconds: float = 60) -> None:
        """Waits until the driver of this turn has begun, and written for a while."""
        if not self.machine.heard("begin", self.turn + 1, seconds) or not self.machine.more("ack", acknowledged, 60):
            raise Wrong(reason)

    def sampled(self, name: str = "disk") -> None:
        """A sample of the back-end must show no faults, no lost pages, and the path of the mode."""
        if self.settings.backend == "sluice":
            wrong_unless(sample_wrong(self.ends.explain(name), name, self.mode))

    def judged(self, disk: str, image: Path, talk: Talk, threads: int | None = None) -> tuple[str | None, str]:
        """Does the image hold all that was acknowledged? What is wrong, and the figures."""
        good, said = check(image, disk, str(threads or self.threads), talk.text.encode(), self.folder / "check.log")
        with open(self.folder / "checked.log", "a") as log:
            log.write(said)
        figures = " ".join(said.splitlines()[-2:])
        return None if good else figures or "the witness does not say what is wrong", figures

    def talks(self) -> Talk:
        """All that the guests of this job said."""
        return Talk(self.folder / "talk.log", *sorted(self.folder.glob("*/talk.log")))

    def report(self, reason: str | None, figures: str) -> None:
        """The end of a job: its rows, and nothing left behind."""
        said = " ".join(self.talks().complaints()[:2])
        reason = ": ".join(part for part in (reason, said) if part)
        done = self.done()
        self.row(FAILED if reason else OK, self.full_title, f"{reason} ({done}; {figures})" if reason else f"{done}; {figures}")
        self.keep_row("failed" if reason else "ok", done, reason)
        for left in [*self.folder.glob("*.img"), *self.folder.glob("*.state")]:
            left.unlink()

    def keep_row(self, verdict: str, done: str, reason: str) -> None:
        """What the table says. Acknowledged writes are those that the host looked for in the image at the end, looks those of the guest at
        what it had read into its memory, faults those of the back-end and of the guest's IOMMU, wrong all that the witness complained
        of, here and there."""
        checked_log = self.folder / "checked.log"
        checked, talk = checked_log.read_text() if checked_log.exists() else "", self.talks().text
        told = [int(found) for found in re.findall(r"SLUICE-GUEST .* faults=(\d+) ", talk)]
        told += [(read_figures(file) or {}).get("faults", 0) for file in self.folder.glob("*.json")]
        row: Row = {
            "job": self.name, "title": self.title, "iommu": self.mode, "done": done, "reason": reason,
            "acknowledged": sum(map(int, re.findall(r"^(\d+) writes acknowledged", checked, re.MULTILINE))),
            "looks": sum(map(int, re.findall(r" arena_looks=(\d+)", talk))), "faults": max(told, default=0),
            "wrong": (checked + talk).count("SLUICE-GUEST error"), "seconds": int(self.seconds * 10) / 10,
            "backend": self.settings.backend, "verdict": verdict,
        }
        append_row(self.results / "events.jsonl", row)


class Rebind(AdverseJob):
    """The driver is unbound and bound again under writes, by the guest itself."""

    title, usual_turns = "unbind and bind", 12

    def move(self) -> None:
        self.begin(f"sluice.vda=rebind sluice.threads={self.threads} sluice.turns={self.turns}")
        if not self.machine.heard("begin", 6, 120):
            raise Wrong("the guest is stuck")
        self.sampled()

    def done(self) -> str:
        return f"{self.turns} times unbound"


# The machine is reset in the middle of writes, again and again, and nothing of them reaches memory or the image afterwards. (R060)
class Resets(AdverseJob):
    """Resets of a machine that writes. The next guest looks twice whether anything still changes; and every third time the machine is held
    right after the reset, and its memory and the image must stay as they are."""

    title, usual_turns, threads = "resets", 9, 32
    held = 0

    def seconds_allowed(self) -> float:
        # a boot for each turn
        return self.limit + self.turns * self.limit / 5

    def move(self) -> None:
        # the talk is read by one guest after the other: nothing but the last line may wait in it
        self.begin(f"sluice.vda=sequence sluice.threads={self.threads} sluice.arena=16")
        while True:
            self.wait_for_turn(f"after reset {self.turn} nothing was written", 2 + self.turn % 4, 120)
            if self.turn == self.turns:
                break
            self.turn += 1
            # at no particular moment
            time.sleep(self.turn * 37 % 100 / 1000)
            self.machine.must("the machine cannot be reset", "system_reset")
            if self.turn % 3 == 0:
                self._hold()
        self.sampled()
        self.machine.tell("stop")

    def _hold(self) -> None:
        self.machine.ask("stop")
        memory = self._memory()
        before = part_sum(memory), part_sum(self.image)
        time.sleep(0.3)
        after = part_sum(memory), part_sum(self.image)
        for what, one, other in zip(("guest memory", "the image"), before, after):
            if one != other:
                raise Wrong(f"reset {self.turn}: {what} changed while the machine was held")
        self.held += 1
        self.machine.ask("cont")

    def _memory(self) -> Path:
        if self.machine.qemu:
            for file in Path(f"/proc/{self.machine.qemu.pid}/fd").iterdir():
                if "memfd:memory-backend-memfd" in str(file.readlink()):
                    return file
        raise Wrong("the machine's memory is nowhere to be found")

    def done(self) -> str:
        return f"{self.turn} resets in the middle of writes, memory and image compared after {self.held}"


class Many(AdverseJob):
    """As many back-ends as a machine has room for, and one guest with all of the disks."""

    title, threads = "24 back-ends", 2
    names = [f"vd{chr(ord('a') + number)}" for number in range(24)]
    peak = checked = acknowledged = 0

    def seconds_allowed(self) -> float:
        return self.limit * 2

    def move(self) -> None:
        options: list[str] = []
        for number, name in enumerate(self.names):
            empty_image(self._image(name), 16 * MIB)
            options += MonitorDisk(number, self.ends.start_disk(name, self._image(name), 1), self.mode).options()
        words = "".join(f" sluice.{name}=sequence" for name in self.names)
        self.machine.start(f"sluice.threads={self.threads} sluice.count=400{words}", options)
        if not self.machine.heard("begin", len(self.names), 240) or not self.machine.runs():
            raise Wrong(f"of {len(self.names)} disks only {self.machine.talk.heard('begin')} were written")
        for name in (self.names[0], self.names[-1]):
            self.sampled(name)
        for end in self.ends.all.values():
            if end.process:
                status = Path(f"/proc/{end.process.pid}/status").read_text()
                self.peak = max(self.peak, *map(int, re.findall(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)))

    def last_word(self) -> None:
        if not self.machine.ended(240):
            raise Wrong("the guest did not end")
        if self.machine.talk.verdict != "ok":
            raise Wrong("the guest says no good verdict")

    def judge(self) -> tuple[str | None, str]:
        reason = None
        for name in self.ends.all:
            wrong, figures = self.judged(name, self._image(name), self.machine.talk)
            reason = reason or (f"{name}: {wrong}" if wrong else None)
            self.checked += 1
            self.acknowledged += int((re.findall(r"(\d+) writes acknowledged", figures) or ["0"])[0])
        return reason, f"{self.acknowledged} writes acknowledged, none lost"

    def _image(self, name: str) -> Path:
        return self.folder / f"{name}.img"

    def done(self) -> str:
        return f"{self.checked} disks at once, no back-end larger than {self.peak} KiB"
