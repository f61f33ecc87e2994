"""A guest that takes turns: its images, its back-ends, and where it waits for the host."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.backend import BackEnd, OwnDisk, Sluice, SluiceFunction, StorageDaemon
from lab.guest import Guest
from lab.jobs.vfio_user import BEHIND, BEHIND_BOTH, qemu_command
from lab.places import LabError, Skipped, Wrong
from lab.platforms import platform
from lab.processes import Processes, until
from lab.qemu import Disk, GuestMachine

from speed.options import VFIO_MODES, Options, device_options
from speed.samples import Counts
from speed.storage import Storage

# seconds until a guest is up, until it goes on, until one that was killed has ended
BOOT, GO_ON, END = 120, 60, 30
# a queue of this many descriptors is what qemu-storage-daemon is made for
QUEUE = 128


def machine_of(mode: str, disks: list[Disk], folder: Path) -> GuestMachine:
    """The machine of a mode. Those with functions over vfio-user have the same QEMU for all of their disks."""
    if mode not in VFIO_MODES:
        return GuestMachine(platform(mode), disks, extra="fio")
    behind = {"vfio-off": BEHIND["none"], "vfio-strict": BEHIND_BOTH}[mode]
    # the disks are looked at by nobody before the guest's kernel
    return GuestMachine(behind, disks, extra="nvme fio", strict_boot=True, program=qemu_command(folder))


@dataclass(frozen=True)
class Event:
    """What a guest reports: `start` or `stop` of a turn with the disk's name, or `end` with the reason, empty for a good one."""

    mode: str
    what: str
    of: str


class Contender:
    """One mode's guest. It reports to a queue that all guests share, since only one of them works, and waits at every start and
    stop until it is told to go on."""

    def __init__(self, processes: Processes, options: Options, storage: Storage, mode: str, work: Path, heard: queue.Queue[Event]) -> None:
        self.processes, self.options, self.storage, self.mode, self.heard = processes, options, storage, mode, heard
        self.folder = Path(tempfile.mkdtemp(prefix=f"{mode}.", dir=work))
        self.targets = options.targets(mode)
        self.names: list[str] = []
        self.backends: dict[str, BackEnd] = {}
        self.disk = ""
        self.left = 0
        self.over = False
        self._go = threading.Semaphore(0)
        self._disks: list[Disk] = []
        self.guest: Guest | None = None

    def start(self, first_round: int, facts: Callable[[Guest, str, str], str | None]) -> None:
        """Starts all of it; returns when the guest waits for its first turn of that round. `facts` says what is wrong with a
        guest's disk in a mode, if anything is."""
        for target in self.targets:
            self._disks.append(self._serve(target))
        machine = machine_of(self.mode, self._disks, self.folder)
        pauses: Mapping[str, Callable[[str], None]] = {what: self._pause(what) for what in ("start", "stop")}
        guest = self.guest = Guest(self.processes, self.folder, machine, self.options.limit, pauses)
        threading.Thread(target=self._run, args=(guest,), daemon=True).start()
        ready = until(BOOT, lambda: self.over or guest.talk.heard("disk=vda step=ready"), every=0.2)
        if not ready or self.over:
            raise LabError(f"the guest for {self.mode} does not come up")
        self.names = [self._name(guest, machine, number) for number in range(len(self._disks))]
        for name, disk in zip(self.names, self._disks):
            wrong = facts(guest, name, self.mode)
            if wrong:
                raise LabError(f"{self.mode}: {wrong}")
            if disk.device.get("indirect_desc") == "off" and "28" in guest.talk.said(name, "features").split(","):
                raise LabError(f"{self.mode}: {name} has indirect descriptors, against its options")
        options = self.options
        guest.say(f"{first_round};{options.rounds};{options.seconds:g};{' '.join(self.names)};{' '.join(options.patterns)}")
        self.left = (options.rounds - first_round) * len(options.patterns) * len(self.targets)
        if not self.next("start", GO_ON):
            raise LabError(f"fio does not start in the guest for {self.mode}")

    def _serve(self, target: str) -> Disk:
        """Starts the back-end of a disk; returns the disk in the guest."""
        options, name = self.options, f"{self.mode}-{target}"
        image = self.storage.image(name)
        served = {disk.name: disk for disk in options.served}.get(target)
        device = device_options(options.disk_options) | device_options(served.device if served else "")
        if target in ("qemu", "qemunvme"):
            # around the page cache QEMU has a better way than its threads
            drive = {"cache": "none", "aio": "native"} if options.direct else {}
            if target == "qemunvme":
                return OwnDisk(self.processes, self.folder, name, image).disk(
                    "speed", nvme=True, device={"serial": name}, drive=drive
                )
            return OwnDisk(self.processes, self.folder, name, image).disk(
                "speed", size=QUEUE, io_thread=True, device=device, drive=drive
            )
        backend: BackEnd
        if served:
            words = (*served.words, *(["--direct"] if options.direct else []))
            if served.function:
                bit = ("--no-packed", "--iommu-platform", "on" if self.mode == "vfio-strict" else "off") if served.function == "blk" else ()
                backend = SluiceFunction(self.processes, self.folder, name, served.program, served.function, image, (*words, *bit))
                self.backends[target] = backend.start()
                return backend.disk("speed")
            backend = Sluice(self.processes, self.folder, name, served.program, image, 1, words)
        else:
            around = "cache.direct=on,aio=native" if options.direct else ""
            backend = StorageDaemon(self.processes, self.folder, name, image, 1, around)
        self.backends[target] = backend.start()
        return backend.disk("speed", size=QUEUE, device=device)

    def _name(self, guest: Guest, machine: GuestMachine, number: int) -> str:
        """What the guest calls a disk. It finds controllers in any order, and each says whose it is."""
        if not self._disks[number].nvme:
            return machine.name(number)
        wanted = f"{self.mode}-{self.targets[number]}"
        found = (words["disk"] for words in guest.talk.reports() if words.get("serial") == wanted and words.get("disk", "").startswith("nvme"))
        name = next(found, None)
        if not name:
            raise LabError(f"no controller in the guest for {self.mode} has the serial number {wanted}")
        return name

    def _run(self, guest: Guest) -> None:
        reason = ""
        try:
            guest.run()
        except Exception as error:  # told by the event, in the thread that waits for it
            reason = str(error) or repr(error)
        self.over = True
        self.heard.put(Event(self.mode, "end", reason))

    def _pause(self, what: str) -> Callable[[str], None]:
        def wait(disk: str) -> None:
            self.heard.put(Event(self.mode, what, disk))
            self._go.acquire()

        return wait

    def go(self) -> None:
        """Lets the guest go on."""
        self._go.release()

    def next(self, what: str, seconds: float) -> bool:
        """Waits for the next report, which must be this guest's, and this one; False after that many seconds without any."""
        try:
            event = self.heard.get(timeout=seconds)
        except queue.Empty:
            return False
        if (event.mode, event.what) != (self.mode, what):
            raise LabError(f"expected {self.mode} {what}, heard {event.mode} {event.what} {event.of}")
        self.disk = event.of
        return True

    @property
    def target(self) -> str:
        """The disk whose turn is next."""
        return self.targets[self.names.index(self.disk)]

    def counts(self, target: str) -> Counts:
        """What a disk's back-end counted so far."""
        backend = self.backends.get(target)
        return Counts.of(backend.explain()) if backend else Counts()

    @property
    def machine(self) -> int | None:
        """QEMU's process while it runs."""
        return self.guest.qemu.pid if self.guest and self.guest.qemu and not self.over else None

    def backend_process(self, target: str) -> int | None:
        """The process of a disk's back-end, if it has one."""
        backend = self.backends.get(target)
        return backend.process.pid if backend and backend.process else None

    def waiting(self, but: str = "") -> list[int]:
        """Its processes, but for QEMU's and that of one back-end."""
        others = (self.backend_process(target) for target in self.backends if target != but)
        return [process for process in others if process]

    def kill(self) -> None:
        """Ends QEMU, wherever the guest is; its end is reported."""
        if self.guest and self.guest.qemu and self.guest.qemu.poll() is None:
            self.guest.qemu.kill()
        # one that waits for us hears of its machine's end only then
        self.go()

    def drop(self) -> None:
        """Ends the guest and its back-ends."""
        self.kill()
        end = time.monotonic() + END
        while self.guest and not self.over and time.monotonic() < end:
            time.sleep(0.05)
            self.go()
        for target, backend in self.backends.items():
            try:
                backend.stop()
            except Wrong:
                pass
        for target in self.targets:
            self.storage.drop(f"{self.mode}-{target}")

    def last_words(self) -> list[str]:
        """What the guest and its machine said last, for one who looks for the reason of a failure."""
        lines = [line for name in ("guest.log", "qemu.log") for line in _lines(self.folder / name)[-3:]]
        said = [line.removeprefix("SLUICE-GUEST ") for line in _lines(self.folder / "talk.log") if line.startswith(("SLUICE-GUEST log", "SLUICE-GUEST dmesg"))]
        return [f"{self.mode}: {line}" for line in lines + said[-5:]]

    def results(self) -> dict[str, tuple[int, int]]:
        """What fio says of the turns: kibibytes and milliseconds."""
        turns = (words for words in (self.guest.talk.reports() if self.guest else []) if "turn" in words)
        return {words["turn"]: (int(words["kib"]), int(words["ms"])) for words in turns}


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").replace("\r", "").splitlines() if file.exists() else []
