"""Back-ends: Sluice, and for comparison qemu-storage-daemon, which knows no IOMMU, and QEMU's own virtio-blk, which is no process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .debian import last_lines
from .figures import Figures
from .places import LabError, Settings, Wrong
from .processes import Processes, Word, output, until
from .qemu import Disk


def options_for(iommu: str) -> tuple[str, ...]:
    """What Sluice has to be told about a guest's IOMMU. QEMU's AMD-Vi does not tell a vhost device what the guest unmaps, so nothing may
    be remembered from one request to the next."""
    return ("--translations", "once") if iommu == "amd" else ()


class BackEnd:
    """One back-end of one device, at a socket in a job's folder. It is started, and may be killed and started again."""

    def __init__(self, processes: Processes, folder: Path, name: str) -> None:
        self.processes, self.folder, self.name = processes, folder, name
        self.socket, self.log = folder / f"{name}.sock", folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[Word]:
        """The command line."""
        raise NotImplementedError

    def disk(self, workload: str, **settings: object) -> Disk:
        """The device in a guest that this back-end serves."""
        return Disk(workload=workload, socket=self.socket, **settings)  # type: ignore[arg-type]

    def start(self) -> BackEnd:
        """Returns when the socket listens."""
        self.process = self.processes.start(self.command(), self.log)
        # a killed one leaves the path behind, so ask the kernel which socket listens
        listening = re.compile(rf"^\S+ \S+ \S+ 00010000 .* {re.escape(str(self.socket))}$", re.MULTILINE)
        ready = until(10, lambda: listening.search(Path("/proc/net/unix").read_text()) or not self.lives(), every=0.02)
        if not ready or not self.lives():
            raise Wrong(f"the back-end for {self.name} does not listen; its log says: {self._last_words()}")
        return self

    def lives(self) -> bool:
        """Does its process run?"""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """A polite end: it must be quick and must say 0. One that has ended already is none of this."""
        if self.process:
            process, self.process = self.process, None
            process.poll()
            code = self.processes.stop(process)
            if code:
                with open(self.log, "a") as log:
                    log.write(f"the back-end for {self.name} ended with status {code}\n")
                raise Wrong("the back-end did not end cleanly")

    def kill(self) -> None:
        """An end without a word, and nothing left of it."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.processes.reap(self.process)
            self.process = None

    def explain(self, file: str = "") -> Figures | None:
        """What it says about itself, kept as `file` in its folder; nothing if it gives no answer or is no Sluice."""
        return None

    def _last_words(self) -> str:
        return " ".join(self.log.read_text(errors="replace").splitlines()[-10:]) if self.log.exists() else ""


class Sluice(BackEnd):
    """Sluice's disk (with an image), or its source of entropy."""

    def __init__(self, processes: Processes, folder: Path, name: str, program: Path, image: Path | None = None, queues: int = 1,
                 options: Sequence[str] = ()) -> None:
        super().__init__(processes, folder, name)
        self.program, self.image, self.queues, self.options = program, image, queues, tuple(options)

    def command(self) -> Sequence[Word]:
        if not self.image:
            return [self.program, "serve", "rng", "--socket-path", self.socket, *self.options]
        return [self.program, "serve", "blk", "--socket-path", self.socket, "--blk-file", self.image,
                "--num-queues", str(self.queues), "--serial", self.name, *self.options]

    def explain(self, file: str = "") -> Figures | None:
        said = output([self.program, "explain", "--json", self.socket], 10, self.log)
        try:
            figures: Figures = json.loads(said or "")
        except ValueError:
            return None
        if file:
            (self.folder / f"{file}.json").write_text(said or "")
        return figures


class SluiceFunction(Sluice):
    """A PCI function that Sluice serves over vfio-user: NVMe or a virtio device."""

    def __init__(self, processes: Processes, folder: Path, name: str, program: Path, kind: str, image: Path | None = None,
                 options: Sequence[str] = ()) -> None:
        super().__init__(processes, folder, name, program, image, options=options)
        self.kind = kind

    def command(self) -> Sequence[Word]:
        return [self.program, "serve", self.kind, "--vfio-user", self.socket, *(["--blk-file", self.image, "--serial", self.name] if self.image else []),
                *self.options]

    def disk(self, workload: str, **settings: object) -> Disk:
        return super().disk(workload, vfio_user=True, nvme=self.kind == "nvme", entropy=self.kind == "rng", **settings)


class StorageDaemon(BackEnd):
    """qemu-storage-daemon's disk."""

    def __init__(self, processes: Processes, folder: Path, name: str, image: Path, queues: int = 1, file_options: str = "") -> None:
        super().__init__(processes, folder, name)
        self.image, self.queues, self.file_options = image, queues, file_options

    def command(self) -> Sequence[Word]:
        return ["qemu-storage-daemon",
                "--blockdev", f"driver=file,filename={self.image},node-name=file,discard=unmap{self.file_options and ',' + self.file_options}",
                "--export", f"type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path={self.socket},writable=on,num-queues={self.queues}"]


class OwnDisk(BackEnd):
    """QEMU's own virtio-blk: no process, the machine opens the image itself."""

    def __init__(self, processes: Processes, folder: Path, name: str, image: Path) -> None:
        super().__init__(processes, folder, name)
        self.image = image

    def start(self) -> BackEnd:
        return self

    def disk(self, workload: str, **settings: object) -> Disk:
        return Disk(workload=workload, file=self.image, **settings)  # type: ignore[arg-type]


class BackEnds:
    """The back-ends of a job, by name: of the kind that BACKEND says."""

    def __init__(self, settings: Settings, processes: Processes, folder: Path) -> None:
        self.settings, self.processes, self.folder = settings, processes, folder
        self.all: dict[str, BackEnd] = {}

    def __getitem__(self, name: str) -> BackEnd:
        return self.all[name]

    def start_disk(self, name: str, image: Path, queues: int, options: Sequence[str] = ()) -> BackEnd:
        """Starts one for an image. The options are for Sluice, besides SLUICE_OPTIONS."""
        made: BackEnd
        if self.settings.backend == "sluice":
            made = Sluice(self.processes, self.folder, name, self.settings.sluice, image, queues, (*self.settings.options, *options))
        elif self.settings.backend == "qsd":
            made = StorageDaemon(self.processes, self.folder, name, image, queues)
        else:
            made = OwnDisk(self.processes, self.folder, name, image)
        return self._start(made)

    def start_entropy(self, name: str, options: Sequence[str] = ()) -> BackEnd:
        """Starts Sluice's source of entropy."""
        return self._start(Sluice(self.processes, self.folder, name, self.settings.sluice, options=(*self.settings.options, *options)))

    def start_function(self, kind: str, name: str, image: Path | None = None, options: Sequence[str] = ()) -> BackEnd:
        """Starts a server of a PCI function: nvme, blk or rng."""
        return self._start(SluiceFunction(self.processes, self.folder, name, self.settings.sluice, kind, image, (*self.settings.options, *options)))

    def _start(self, made: BackEnd) -> BackEnd:
        self.all[made.name] = made
        try:
            return made.start()
        except Wrong as wrong:
            with open(self.folder / "backends.log", "a") as log:
                log.write(f"{wrong}\n")
            raise Wrong("the back-end did not start") from wrong

    def stop(self, name: str) -> str | None:
        """Ends one politely; says what was wrong with that. One that was never started is no trouble."""
        try:
            if name in self.all:
                self.all[name].stop()
            return None
        except Wrong as wrong:
            return str(wrong)

    def explain(self, name: str, file: str | None = None) -> Figures | None:
        """What a running one says about itself, kept as a file of its name."""
        return self.all[name].explain(name if file is None else file)


def read_figures(file: Path) -> Figures | None:
    """What a back-end said, from the file in which it was kept."""
    try:
        figures: Figures = json.loads(file.read_text())
        return figures
    except (OSError, ValueError):
        return None


def program_version(command: Sequence[Word], log: Path | None = None) -> str:
    """The first thing that looks like a version in what a program says of itself."""
    found = re.search(r"\d+\.\d+(\.\d+)?", output(command, 600, log) or "")
    if not found:
        raise LabError(last_lines(log, 1) if log else f"no version of {command[0]}")
    return found.group(0)


def qemu_version(program: str = "qemu-system-x86_64", around: Sequence[Word] = ()) -> str:
    """The front-end's name in a row. `around` is what comes before the program's name, to run it in a chroot."""
    said = output([*around, program, "--version"], 600) or ""
    found = re.search(r"version ([0-9.]*)", said)
    return f"QEMU {found.group(1) if found else ''}"
