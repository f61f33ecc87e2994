"""Live migration."""

from __future__ import annotations

import re
from pathlib import Path

from ..monitor import Machine, MonitorDisk
from ..places import MIB, Wrong, empty_image
from ..processes import until
from ..talk import Talk
from .adverse import AdverseJob


# Live migration there and back under writes, and through a file: no write is lost, no fault invented. (R132–R135, R138, R141)
class Migrate(AdverseJob):
    """Two hops live, two through a file. Each machine has a back-end of its own; the image is one, and locked by whichever runs."""

    title = "live migration"
    words = "sluice.vda=sequence sluice.threads=16 sluice.arena=48"

    def prepare(self) -> None:
        self.machines: list[Machine] = []
        self.times: list[str] = []
        self.down: list[str] = []
        empty_image(self.image, 64 * MIB)

    def move(self) -> None:
        options = ("--lock", "running") if self.settings.backend == "sluice" else ()
        for side in ("a", "b"):
            self.ends.start_disk(side, self.image, 1, options)
        source = self._boot(0, "a")
        if not source.more("ack", 20, 60):
            raise Wrong("the guest wrote nothing")
        for hop, side in enumerate("baba", 1):
            source = self._hop(hop, side, source)
        source.tell("stop")
        self.machine = source

    def _boot(self, hop: int, side: str, incoming: str = "") -> Machine:
        machine = Machine(self.processes, self.folder / f"{hop}-{side}", self.mode, self.limit)
        self.machines.append(machine)
        options = MonitorDisk(0, self.ends[side], self.mode).options()
        return machine.start(self.words, [*options, *(["-incoming", incoming] if incoming else [])])

    def _hop(self, hop: int, side: str, source: Machine) -> Machine:
        live = hop <= 2
        socket, file = f"unix:{self.folder}/migration.sock", self.folder / "machine.state"
        target = None
        try:
            if live:
                target = self._boot(hop, side, socket)
            # slow at first, so that the guest goes on writing into memory that was copied already, then as fast as it can
            source.ask("migrate-set-parameters", max_bandwidth=20000000, downtime_limit=300)
            source.ask("migrate", uri=socket if live else f"exec:cat > {file}")
            self._finish(hop, source)
            if not source.ended(10):
                source.drop()
            target = target or self._boot(hop, side, f"exec:cat {file}")
        except Wrong as wrong:
            raise Wrong(f"hop {hop}: {wrong}") from wrong
        if not target.more("ack", 20, 60):
            raise Wrong(f"hop {hop}: the guest does not go on")
        self.sampled(side)
        return target

    def _finish(self, hop: int, source: Machine) -> None:
        """Waits until a migration is complete, notes what it took, and lets the machine that it left end."""
        status = {}

        def over() -> bool:
            nonlocal status
            status = source.ask("query-migrate")
            return status.get("status") in ("completed", "failed", "cancelled")

        if not until(12, over):
            source.ask("migrate-set-parameters", max_bandwidth=4000000000, downtime_limit=3000)
            until(60, over)
        if status.get("status") != "completed":
            raise Wrong(f"migration is {status.get('status')} {status.get('error-desc', '')}".rstrip())
        self.down.append(str(status["downtime"]))
        self.times.append(f"{status['downtime']} ms down of {status['total-time']} ms, {status['ram']['dirty-sync-count']} passes")
        source.ask("quit")

    def last_word(self) -> None:
        if not self.machine.ended(40):
            raise Wrong("the guest did not end")
        if self.machine.talk.verdict != "ok":
            raise Wrong("the guest says no good verdict")

    def end_machines(self) -> None:
        for machine in self.machines:
            machine.drop()

    def judge(self) -> tuple[str | None, str]:
        talk = Talk(*sorted(Path(self.folder).glob("?-?/talk.log")))
        wrong, figures = self.judged("vda", self.image, talk)
        looks = re.findall(r"end .*(arena_reads=.*)", talk.text)
        return wrong, "; ".join(["; ".join(self.times), ", ".join([*looks[-1:], figures])])

    def done(self) -> str:
        return f"twice live, twice through a file, {', '.join(self.down)} ms down"
