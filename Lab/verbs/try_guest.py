"""make try: a stock Debian guest with a disk served by Sluice, confined by the guest's IOMMU; and a look from outside at every
byte.

    IOMMU=off|strict|lazy|pt|amd|virtio  RING=split|packed  QUEUES=1..4   make try

In this order: what building needs, the build, a machine in one process, what the guest needs, the guest, the look."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.backend import BackEnds, options_for, read_figures
from lab.figures import wrong_figures
from lab.guest import Guest
from lab.kernel import kernel
from lab.places import TREE, LabError, Settings, Wrong
from lab.platforms import platform
from lab.processes import Processes, end_on_signals
from lab.qemu import GuestMachine
from lab.talk import Talk

from verbs.programs import give_up, run
from verbs.try_rows import figure_rows, row

PLATFORMS = {
    "off": "no IOMMU",
    "strict": "Intel IOMMU (VT-d), strict: what the guest unmaps is gone at once",
    "lazy": "Intel IOMMU (VT-d), lazy: what the guest unmaps goes a little later",
    "pt": "Intel IOMMU (VT-d), passthrough: the guest maps all its memory",
    "amd": "AMD IOMMU (AMD-Vi)",
    "virtio": "virtio-iommu",
}
SAMPLES = ("mounted", "writing", "unmounted")
FILES = 24


@dataclass(frozen=True)
class Wish:
    """The guest that was asked for."""

    iommu: str
    ring: str
    queues: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> Wish:
        """Reads the variables; refuses what there is not."""
        iommu, ring = environment.get("IOMMU") or "strict", environment.get("RING") or "split"
        queues = environment.get("QUEUES") or "1"
        if iommu not in PLATFORMS:
            give_up("try", f"IOMMU is one of {' '.join(PLATFORMS)}, not '{iommu}'", 2)
        if ring not in ("split", "packed"):
            give_up("try", f"RING is split or packed, not '{ring}'", 2)
        if queues not in ("1", "2", "3", "4"):
            give_up("try", f"QUEUES is 1 to 4, not '{queues}'", 2)
        return Wish(iommu, ring, int(queues))


@dataclass
class Trial:
    """One run, in a folder of its own."""

    wish: Wish
    settings: Settings
    work: Path
    processes: Processes
    talk: Talk = field(default_factory=Talk)

    def run(self) -> None:
        """Prints a row for each thing there is to see; raises Wrong with what is not as it must be."""
        ours = self.settings.backend == "sluice"
        if ours:
            self.build()
            print("A machine in one process, its guest the drivers of this package:", flush=True)
            if subprocess.run([self.settings.sluice, "machine", "run"]).returncode != 0:
                raise Wrong("the machine in one process")
            print()
        whose = "Sluice" if ours else f"{self.settings.backend}, not by Sluice: no figures of the DMA path"
        print(f"A stock Debian guest, its disk served by {whose}:", flush=True)
        run([TREE / "Scripts/install", "guest"])
        image = self.image()
        backends = BackEnds(self.settings, self.processes, self.work)
        seconds = self.boot(backends, image)
        if ours:
            self.look(backends)
        self.verify(image, seconds)

    def build(self) -> None:
        """The release build, unless SLUICE names a program."""
        if self.settings.built and os.access(self.settings.sluice, os.X_OK):
            return
        if not shutil.which("swift"):
            raise Wrong("there is no swift; install Swift 6.3, see https://www.swift.org/install/linux/")
        print("building Sluice (the first time takes some minutes) ...", flush=True)
        with (self.work / "build.log").open("w") as log:
            if subprocess.run(["swift", "build", "-c", "release", "--product", "sluice"], cwd=TREE, stdout=log, stderr=log).returncode != 0:
                raise Wrong("the release build")

    def image(self) -> Path:
        """The guest's disk: an ext4 file system with files on it and their checksums."""
        files = self.work / "files"
        files.mkdir()
        sums = []
        for number in range(FILES):
            content = os.urandom(number * number * 1013 + 29)
            (files / f"host-{number}").write_bytes(content)
            sums.append(f"{hashlib.md5(content).hexdigest()}  host-{number}\n")
        (files / "manifest.host").write_text("".join(sums))
        image = self.work / "disk.img"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        self.tool("mke2fs", "mke2fs", "-q", "-t", "ext4", "-d", files, image)
        return image

    def tool(self, failure: str, *command: str | Path) -> None:
        """Runs a program, with what it says in a log of its own."""
        with (self.work / f"{command[0]}.log").open("wb") as log:
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120).returncode != 0:
                raise Wrong(failure)

    def boot(self, backends: BackEnds, image: Path) -> float:
        """The guest, from boot to power-off; returns the seconds. Samples of the back-end are taken meanwhile."""
        wish, settings = self.wish, self.settings
        disk = backends.start_disk("disk", image, wish.queues, options_for(wish.iommu))
        print(row("platform", f"x86-64 under QEMU, {PLATFORMS[wish.iommu]}"))
        version = (kernel(platform(wish.iommu).kernel) / "version").read_text().strip()
        print(row("guest", f"Debian, kernel {version}, 640 MiB; booting ..."), flush=True)
        # As README says: where the guest maps anew for every request, a table of descriptors is one more mapping to ask for.
        device = {} if wish.iommu in ("off", "pt") else {"indirect_desc": "off"}
        disks = [disk.disk("try", ring=wish.ring, queues=wish.queues, device=device)]
        machine = GuestMachine(platform(wish.iommu), disks, processors=wish.queues, strict_boot=True)
        pauses = {name: lambda _, name=name: backends.explain("disk", name) for name in SAMPLES}
        guest = Guest(self.processes, self.work, machine, settings.limit or 180, pauses)
        began = time.monotonic()
        guest.run()
        seconds = time.monotonic() - began
        wrong = backends.stop("disk")
        if wrong:
            raise Wrong(wrong)
        said = {key: guest.talk.said("vda", key) for key in ("ring", "access_platform", "queues", "group")}
        if said["ring"] != wish.ring:
            raise Wrong(f"the guest uses a {said['ring']} ring")
        expected = "no" if wish.iommu == "off" else "yes"
        if said["access_platform"] != expected:
            raise Wrong(f"VIRTIO_F_ACCESS_PLATFORM: the guest says '{said['access_platform']}', expected '{expected}'")
        plural = "" if said["queues"] == "1" else "s"
        print(row("disk", f"virtio-blk over vhost-user, {said['ring']} ring, {said['queues']} queue{plural}; the guest's IOMMU domain: {said['group']}"))
        self.talk = guest.talk
        return seconds

    def look(self, backends: BackEnds) -> None:
        """What the back-end said of itself must hold together."""
        for name in SAMPLES:
            figures = read_figures(self.work / f"{name}.json")
            if figures is None:
                raise Wrong("sluice explain gave no answer")
            wrong = wrong_figures(figures, self.wish.iommu)
            if wrong:
                raise Wrong(wrong)
        assert figures is not None
        for line in figure_rows(figures, self.talk):
            print(line)

    def verify(self, image: Path, seconds: float) -> None:
        """Outside, with the guest gone: is the file system whole, and every byte of every file there?"""
        self.tool("e2fsck finds errors in the image", "e2fsck", "-fn", image)
        out = self.work / "out"
        out.mkdir()
        self.tool("debugfs cannot read the image", "debugfs", "-R", f"rdump / {out}", image)
        host = check_manifest(out, out / "manifest.host")
        guest = check_manifest(out, out / "manifest.guest")
        if (out / "manifest.host").read_bytes() != (self.work / "files/manifest.host").read_bytes():
            raise Wrong("the host's manifest changed")
        if guest != FILES:
            raise Wrong(f"the guest's manifest lists {guest} files, {FILES} were written")
        files = [*out.glob("host-*"), *(file for file in (out / "guest").iterdir() if file.is_file())]
        total = sum(file.stat().st_size for file in files)
        print(row("verified", f"{host} files of this host by the guest, {guest} files of the guest from outside: {total} bytes"))
        print(row("", f"the file system is clean; {seconds:.1f} s from boot to power-off"))


def check_manifest(folder: Path, manifest: Path) -> int:
    """How many files a list of checksums names; raises Wrong where one of them is another file."""
    try:
        lines = manifest.read_text().splitlines()
        for line in lines:
            checksum, _, name = line.partition("  ")
            if hashlib.md5((folder / name).read_bytes()).hexdigest() != checksum:
                raise Wrong(f"files differ from what was written: {name}")
        return len(lines)
    except OSError as error:
        raise Wrong(f"files differ from what was written: {error}") from error


def show_logs(folder: Path, count: int = 12) -> None:
    """The last lines of every log of a run that failed."""
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        if lines:
            print(f"--- last lines of {log}", *(line[:300] for line in lines[-count:]), sep="\n")


def main(arguments: list[str]) -> int:
    if arguments:
        give_up("try", f"no options, but IOMMU, RING and QUEUES in the environment, not '{arguments[0]}'", 2)
    wish = Wish.of(os.environ)
    end_on_signals()
    try:
        settings = Settings.of()
    except LabError as error:
        give_up("try", str(error), 2)
    run([TREE / "Scripts/install", "build"])
    work = Path(tempfile.mkdtemp(prefix="sluice-try.", dir="/tmp"))
    keep = settings.keep
    try:
        with Processes() as processes:
            Trial(wish, settings, work, processes).run()
        print("try: ok")
        return 0
    except (Wrong, LabError) as error:
        keep = True
        show_logs(work)
        print(f"try: failed: {error}")
        return 1
    finally:
        if keep:
            print(f"logs: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
