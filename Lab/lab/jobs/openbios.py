"""The lab's system whose firmware is all there is: OpenBIOS on SPARC64 sun4u, a big-endian machine for which Debian has no kernel.
OpenBIOS has a virtio-blk driver that reads, and Forth to say what it read."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import zlib
from pathlib import Path

from ..backend import BackEnds, qemu_version
from ..debian import inside, package
from ..figures import Figures, wrong_figures
from ..job import FAILED, OK, SKIPPED
from ..places import MIB, Settings, Wrong, random_image
from ..processes import Word, until
from .systems import DeviceRow, SystemJob

READS = 32                     # of 32 KiB: what its heap has room for
READ_BYTES = 32 << 10

# The CRC of gzip, a table for it, and so many reads of the disk one after the other; a line holds less than 80 characters.
FORTH = """\
hex create table 800 allot
: entry 8 0 do dup 1 and if 1 >> edb88320 xor else 1 >> then loop ;
: entries 100 0 do i entry i cells table + ! loop ; entries
: crc bounds do i c@ over xor ff and cells table + @ swap 8 >> xor loop ;
8000 alloc-mem value buffer
" /pci@1fe,0/pci@1/scsi@0/disk" open-dev value disk
: seek-to 0 " seek" disk $call-method drop ;
: take buffer 8000 " read" disk $call-method drop ;
: part 8000 * seek-to take buffer 8000 crc ;
: parts ffffffff swap 0 do i part loop ffffffff xor ;
1 parts ." FIRST" ." =" u. cr
"""


class OpenBiosBoot:
    """One boot, from the host's own QEMU or another suite's, which reads the disk. What it read is two CRCs as OpenBIOS computed them."""

    def __init__(self, job: SystemJob, settings: Settings, folder: Path, suite: str, bit: str) -> None:
        self.job, self.folder, self.suite, self.bit = job, folder, suite, bit
        self.image = folder / "vda.img"
        self.ends = BackEnds(settings, job.processes, folder)
        self.failure: str | None = None
        self.figures: Figures | None = None
        self.read_first = self.read_all = ""
        self._lines = 0
        folder.mkdir(parents=True)

    def command(self) -> list[Word]:
        """QEMU's command line."""
        program: list[Word] = ["qemu-system-sparc64"]
        shared = []
        if self.suite:
            program = inside(self.suite, self.folder, [package(self.suite, "amd64", "qemu-system-sparc") / "usr/bin/qemu-system-sparc64"])
            # this machine allocates its memory itself; only newer ones can be told to let others have it
            shared = ["-machine", "aux-ram-share=on"]
        disk = self.ends["vda"].disk("", queues=1)
        place = f"bus=pciB,disable-legacy=on,iommu_platform={self.bit}"
        if disk.socket:
            device = ["-chardev", f"socket,id=disk,path={disk.socket}", "-device", f"vhost-user-blk-pci,chardev=disk,{place}"]
        else:
            device = ["-drive", f"file={disk.file},format=raw,if=none,id=disk", "-device", f"virtio-blk-pci,drive=disk,{place}"]
        return [*program, "-M", "sun4u", "-nodefaults", "-no-user-config", "-nographic", "-m", "256M", *shared, "-serial", "stdio",
                "-prom-env", "auto-boot?=false", *device]

    def run(self) -> OpenBiosBoot:
        """Boots it once; `failure` says why it did not come to a prompt."""
        random_image(self.image, MIB)
        try:
            self.ends.start_disk("vda", self.image, 1)
            with open(self.folder / "console.log", "wb") as console:
                qemu = self.job.processes.start(self.command(), self.folder / "qemu.log", stdin=subprocess.PIPE, stdout=console, limit=self.job.limit)
            try:
                self._talk(qemu)
            finally:
                self.job.processes.stop(qemu)
        except Wrong as wrong:
            self.failure = str(wrong)
        return self

    def _talk(self, qemu: subprocess.Popen[bytes]) -> None:
        for line in FORTH.splitlines():
            self._type(qemu, line, 90)
        if self._prompted(qemu, 60):
            self.read_first = self._said("FIRST")
            if self.read_first and self.read_first == crc(self.image.read_bytes()[:READ_BYTES]):
                self._type(qemu, f'{READS:x} parts ." ALL" ." =" u. cr', 60)
                if self._prompted(qemu, 120):
                    self.read_all = self._said("ALL")
        self.figures = self.ends.explain("vda")

    def _type(self, qemu: subprocess.Popen[bytes], line: str, seconds: float) -> None:
        if not self._prompted(qemu, seconds) or qemu.poll() is not None or not qemu.stdin:
            raise Wrong("OpenBIOS gave no prompt")
        self._lines += 1
        qemu.stdin.write(f"{line}\r".encode())
        qemu.stdin.flush()

    def _console(self) -> str:
        return (self.folder / "console.log").read_bytes().decode(errors="replace").replace("\r", "")

    def _prompted(self, qemu: subprocess.Popen[bytes], seconds: float) -> bool:
        return until(seconds, lambda: self._console().count("0 > ") > self._lines or qemu.poll() is not None)

    def _said(self, word: str) -> str:
        found: list[str] = re.findall(rf"^.*{word}=([0-9a-f]*) ", self._console(), re.MULTILINE)
        return found[-1] if found else ""

    def read(self) -> bool:
        """Did it read the disk, and right?"""
        return bool(self.read_all) and self.read_all == crc(self.image.read_bytes())

    def fate(self) -> str:
        """How far it got, in words."""
        if self.read():
            return "reads the disk"
        if self.failure:
            words = [line for line in (self.folder / "qemu.log").read_text().splitlines() if "terminating on signal" not in line]
            return f"does not start ({words[-1].rpartition(': ')[2] if words else ''})"
        return "gets no further"


def crc(data: bytes) -> str:
    """The CRC of gzip, as Forth prints it."""
    return f"{zlib.crc32(data):x}"


class OpenBios(SystemJob):
    """Three boots, a row each."""

    def work(self) -> None:
        if os.getuid() != 0:
            self.skip("a chroot needs root", front_end="QEMU of trixie")
            return
        for suite, bit in (("trixie", "off"), ("trixie", "on"), ("", "off")):
            self.started += self.seconds
            self._boot(suite, bit)

    def _boot(self, suite: str, bit: str) -> None:
        folder = self.folder / f"{suite or 'host'}-{bit}"
        self.front_end = qemu_version(around=inside(suite, self.folder, [])) if suite else qemu_version("qemu-system-sparc64")
        boot = OpenBiosBoot(self, self.settings, folder, suite, bit).run()
        row = self.new_row(bit=bit)
        stopped = boot.ends.stop("vda")
        figures = boot.figures or {}
        row.take(boot.figures)
        row.negotiated, row.ring = figures.get("negotiated_features", []), figures.get("ring") or ""
        self.report(row, *self._verdict(boot, row, figures, stopped))
        for image in self.folder.glob(f"{folder.name}*/vda.img"):
            image.unlink()

    def _verdict(self, boot: OpenBiosBoot, row: DeviceRow, figures: Figures, stopped: str | None) -> tuple[str, str]:
        never = "no request ever arrived"
        if stopped or boot.failure:
            return FAILED, stopped or boot.failure or ""
        if boot.read():
            row.bytes_verified = MIB
            reason = self._account_wrong(boot, row) if self.settings.backend == "sluice" else None
            return (FAILED, reason) if reason else (OK, "")
        if figures.get("requests", 0) != 0:
            return FAILED, f"OpenBIOS read something else than the disk holds; QEMU's own device {self._peer('qemu', boot)}"
        if boot.bit == "on" and not row.negotiated:
            row.requests = row.faults = None
            return SKIPPED, (f"{never}: OpenBIOS negotiates VIRTIO_F_VERSION_1 alone, so QEMU denies it FEATURES_OK, and OpenBIOS goes on without looking."
                             f" QEMU starts no vhost-user device then: with qemu-storage-daemon it {self._peer('qsd', boot)}."
                             f" QEMU's own device, which serves without DRIVER_OK, {self._peer('qemu', boot)}")
        if figures.get("memory_bytes") == 0:
            row.requests = row.faults = None
            return SKIPPED, (f"{never}: this QEMU cannot share the machine's memory with another process (10.0 can, aux-ram-share=on), and its"
                             " SET_MEM_TABLE names no region; OpenBIOS opens the disk, negotiates and waits. With qemu-storage-daemon it"
                             f" {self._peer('qsd', boot)}")
        return FAILED, f"{never}; QEMU's own device {self._peer('qemu', boot)}"

    def _account_wrong(self, boot: OpenBiosBoot, row: DeviceRow) -> str | None:
        if wrong := wrong_figures(boot.figures, "off"):
            return wrong
        if (boot.bit, row.negotiated) != ("off", [32]):
            return f"OpenBIOS negotiated the features {row.negotiated} with bit 33 {boot.bit}"
        return f"{row.requests} requests" if row.requests != READS + 1 else None

    def _peer(self, kind: str, boot: OpenBiosBoot) -> str:
        """How far another back-end gets."""
        settings = dataclasses.replace(self.settings, backend=kind)
        try:
            other = OpenBiosBoot(self, settings, Path(f"{boot.folder}-{kind}"), boot.suite, boot.bit).run()
            other.ends.stop("vda")
            return other.fate()
        except Exception:
            return "could not be run"
