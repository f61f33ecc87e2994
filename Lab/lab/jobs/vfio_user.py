"""The lab's systems whose devices are whole PCI functions, served over vfio-user to a QEMU that has vfio-user-pci: NVMe, virtio-blk and
virtio-rng, behind each kind of IOMMU, with guest memory that the server maps and with memory that it reaches only by asking QEMU."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any
from typing import Any

from ..backend import qemu_version
from ..debian import inside
from ..figures import Figures
from ..guest import Pause
from ..job import FAILED, OK, append_row
from ..places import MIB, LabError, Settings, Skipped, Wrong, part_sum, random_image
from ..platforms import PLATFORMS, Platform
from ..processes import output
from ..qemu import Disk, GuestMachine
from ..watch import Watch
from .matrix import halves_wrong
from .systems import ENTROPY_BYTES, SystemBoot, SystemJob, features_of

SUITE = "sid"       # whose QEMU has the device
_VTD = dataclasses.replace(PLATFORMS["strict"], devices=("-device", "intel-iommu,intremap=off,caching-mode=on"), ats=False)

# Without caching-mode=on VT-d tells QEMU's vfio devices nothing, and without dma-remap=on neither does AMD-Vi.
BEHIND = {
    "none": PLATFORMS["off"],
    "vtd": _VTD,
    "pt": dataclasses.replace(_VTD, name="pt", words=PLATFORMS["pt"].words),
    "virtio": dataclasses.replace(PLATFORMS["virtio"], ats=False),
    "amd": dataclasses.replace(PLATFORMS["amd"], devices=("-device", "amd-iommu,intremap=off,dma-remap=on")),
}
# with vhost-user disks in the same machine, which ask QEMU themselves
BEHIND_BOTH = dataclasses.replace(PLATFORMS["strict"], devices=("-device", "intel-iommu,intremap=off,caching-mode=on,device-iotlb=on"))
CONFINED = ("vtd", "virtio", "amd")
GROUPS = {"none": "none", "vtd": "DMA", "pt": "identity"}


def qemu_command(folder: Path) -> list[Any]:
    """QEMU with the device. Skips where there is none: such a QEMU is in few suites yet, and a chroot needs root and an archive that is
    whole today."""
    try:
        if os.getuid() != 0:
            raise Skipped("no QEMU with vfio-user-pci: a chroot needs root")
        program = inside(SUITE, folder, ["qemu-system-x86_64"])
    except LabError as error:
        raise Skipped(f"no QEMU with vfio-user-pci: {' '.join(str(error).split())}") from error
    if "vfio-user-pci" not in (output([*program, "-device", "help"]) or ""):
        raise Skipped(f"the QEMU of {SUITE} has no vfio-user-pci")
    return program


class FunctionBoot(SystemBoot):
    """One boot with three functions; with the bit off the two virtio ones, which behind an IOMMU must get nowhere."""

    job: VfioUserSystem

    def __init__(self, job: VfioUserSystem, bit: str, folder: Path, settings: Settings) -> None:
        super().__init__(job, bit, folder, settings)
        self.behind, self.shared = job.behind, job.shared
        self.refused = bit == "off" and self.behind in CONFINED
        # QEMU's NVMe has no such bit: one boot is enough of it
        self.devices = {"vda": "blk", "rng": "rng", **({"nvme0n1": "nvme"} if bit == "on" else {})}
        self.pauses: dict[str, Pause] = {"working": self._begin, "done": self._end}
        self.watches: dict[str, Watch] = {}
        self.absent: dict[str, str] = {}      # functions that were not served, and why: the others are tried all the same

    def run(self) -> FunctionBoot:
        try:
            if disks := self.start():
                self.job.guest(self.machine(disks), self.pauses, self.folder).run()
        except Wrong as wrong:
            self.failure = str(wrong)
        finally:
            for name, watch in self.watches.items():
                watch.stop()
                for sample in watch.samples:
                    append_row(self.folder / f"{name}.samples", sample)
        return self

    def _begin(self, disk: str) -> None:
        """What could be reached counts from here on: before the guest's kernel sets its IOMMU up, all of memory can be."""
        self.watches[disk] = Watch(self.ends[disk])

    def _end(self, disk: str) -> None:
        """And until here: a kernel that powers off switches its IOMMU off first, and then all of memory can be reached again."""
        if disk in self.watches:
            self.watches[disk].stop()
        self.ends.explain(disk)

    def start(self) -> list[Disk]:
        disks = []
        for name, kind in self.devices.items():
            image = None
            if kind != "rng":
                image = self.image(name)
                random_image(image, 8 * MIB, 16 * MIB)
                self.original[name] = part_sum(image, 0, 8 * MIB)
                self.original[f"{name} whole"] = part_sum(image)
            options = () if kind == "nvme" else ("--iommu-platform", self.bit)
            work = "refused" if self.refused else "rng" if kind == "rng" else "bypassed" if self.bit == "off" else "raw"
            try:
                disks.append(self.ends.start_function(kind, name, image, options).disk(work))
            except Wrong as wrong:
                self.absent[name] = str(wrong)
        return disks

    def machine(self, disks: list[Disk]) -> GuestMachine:
        # SeaBIOS would drive disks that it does not boot from, and put its own requests among the kernel's
        return GuestMachine(BEHIND[self.behind], disks, bit=False, processors=2, extra="nvme", strict_boot=True,
                            memory="shared" if self.shared else "ram", program=self.job.program)

    def reached(self, figures: Figures) -> dict[str, int]:
        """What a function could reach at a moment, by itself or by asking QEMU, of the machine's memory."""
        reachable = figures["reachable_bytes"] + figures.get("bytes_without_descriptor", 0)
        memory = int(BEHIND[self.behind].memory.removesuffix("M")) * MIB
        # QEMU maps its firmware too
        return {"reachable_bytes": min(reachable, memory), "memory_bytes": memory}

    def samples(self, name: str) -> list[dict[str, Any]]:
        """What could be reached when, while the guest worked."""
        samples = self.watches[name].samples if name in self.watches else []
        return [{**sample, **self.reached(sample)} for sample in samples]

    def exposure(self, name: str) -> float | None:
        """The most of the guest's memory that the function could reach while the guest worked, in percent."""
        figures = self.figures(name)
        seen = [*self.samples(name), *([self.reached(figures)] if figures else [])]
        return round(max(sample["reachable_bytes"] / sample["memory_bytes"] for sample in seen) * 100, 3) if seen else None

    def faults(self, name: str, figures: Figures) -> int | None:
        """The faults of a row: here those that the server counted."""
        return figures.get("faults")

    def wrong(self, name: str) -> str | None:
        talk, kind = self.talk, self.devices[name]
        if name in self.absent:
            return self.absent[name]
        if self.failure and talk.said(name, "verdict") != "ok":
            return self.failure
        if self.refused:
            return self._refused_wrong(name) or self._account_wrong(name, self.figures(name))
        if kind != "nvme" and talk.said(name, "access_platform") != ("yes" if self.bit == "on" else "no"):
            return f"bit 33 is '{talk.said(name, 'access_platform')}' in the guest"
        group = talk.said(name, "group")
        if group != GROUPS.get(self.behind, group) or (self.behind in CONFINED and group == "none"):
            return f"the IOMMU group is {group}"
        if kind == "rng":
            if talk.said(name, "bytes", step="entropy") != str(ENTROPY_BYTES):
                return "no entropy arrived"
        elif wrong := self.data_wrong(name):
            return wrong
        if kind == "blk" and self.bit == "off" and self._bypassed(name) != {"read": "0", "write": "0", "buffer": "written", "used": "2"}:
            return f"a program with physical addresses got nowhere: {self._bypassed(name)}"
        return self._account_wrong(name, self.figures(name))

    def data_wrong(self, name: str) -> str | None:
        """What is wrong with a disk's bytes, as either side saw them."""
        return halves_wrong(self.talk, name, self.image(name), self.original[name])

    def _refused_wrong(self, name: str) -> str | None:
        """The seed's device before an IOMMU that Linux bypasses: nothing moves, in either direction."""
        talk = self.talk
        if name == "rng":
            return None if talk.said(name, "bytes", step="refused") == "0" else "entropy arrived"
        if part_sum(self.image(name)) != self.original[f"{name} whole"]:
            return "the image changed"
        if self._bypassed(name) != {"read": "255", "write": "255", "buffer": "kept", "used": "0"}:
            return f"a program with physical addresses got an answer: {self._bypassed(name)}"
        if talk.said(name, "driver", step="refused") != "waits":
            return "Linux's driver did not wait for an answer"
        if talk.said(name, "access_platform", step="refused") != "0":
            return "bit 33 was negotiated"
        return None

    def _bypassed(self, name: str) -> dict[str, str]:
        """What came of the program in the guest that drives a disk with physical addresses."""
        return {key: self.talk.said(name, key, step="bypass") for key in ("read", "write", "buffer", "used")}

    def _account_wrong(self, name: str, figures: Figures | None) -> str | None:
        """What the server says of itself."""
        if not figures:
            return "sluice explain gave no answer"
        try:
            return self._figures_wrong(name, figures)
        except (KeyError, TypeError) as error:
            return f"explain's answer cannot be read: {error!r}"

    def _figures_wrong(self, name: str, figures: Figures) -> str | None:
        virtio, exposed = self.devices[name] != "nvme", self.exposure(name) or 0
        if figures["failed_sessions"]:
            return f"{figures['failed_sessions']} connections failed"
        if not self.shared and figures["memory_bytes"]:
            return "the server has a descriptor of the guest's memory"
        if self.refused:
            if figures["completions"]:
                return f"{figures['completions']} requests were completed"
            return None if figures["faults"] else "the server counted no fault"
        if figures["faults"]:
            return f"{figures['faults']} faults"
        if self.behind in CONFINED and not 0 < exposed < 25:
            return f"{exposed} % of the guest's memory could be reached behind its IOMMU"
        if self.behind not in CONFINED and exposed < 90:
            return f"only {exposed} % of the guest's memory could be reached without an IOMMU in use"
        if not virtio:
            return None
        if not figures["completions"]:
            return "no request was counted"
        if figures["address_path"] != ("platform" if self.bit == "on" else "physical"):
            return f"the address path is {figures['address_path']}"
        if sorted(features_of(self.talk.said(name, "features"))) != sorted(figures["negotiated_features"]):
            return f"the guest reads the features {self.talk.said(name, 'features')}, the server tells {figures['negotiated_features']}"
        return None


class VfioUserSystem(SystemJob):
    """The functions of one machine: `vfio-user-IOMMU`, or `vfio-user-IOMMU-ram` with memory that has no descriptor."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.behind, _, memory = self.system.name.removeprefix("vfio-user-").partition("-")
        self.shared = memory != "ram"
        self.program: list[Any] = []

    def has_qemu(self) -> bool:
        """Whether a QEMU with such functions is here, which is the front-end then; says why not, as a skip."""
        try:
            self.must_be_able("vfio-user")
            self.program = qemu_command(self.folder)
        except Skipped as skipped:
            self.skip(str(skipped), front_end=f"QEMU of {SUITE}")
            return False
        self.front_end = qemu_version(around=inside(SUITE, self.folder, []))
        return True

    def work(self) -> None:
        if not self.has_qemu():
            return
        for bit in ("off", "on"):
            self.started += self.seconds
            boot = FunctionBoot(self, bit, self.folder / bit, self.settings).run()
            self.report_functions(boot, self.seconds)

    def able(self, what: str) -> bool:
        return self.settings.backend == "sluice"

    def report_functions(self, boot: FunctionBoot, took: float) -> None:
        """Reports every function of a boot."""
        for name, kind in boot.devices.items():
            stopped = None if name in boot.absent else boot.ends.stop(name)
            image = boot.image(name)
            verified = 0 if boot.refused or kind != "rng" and not image.exists() else ENTROPY_BYTES if kind == "rng" else image.stat().st_size
            features = boot.talk.said(name, "features")
            row = self.new_row(f"{kind} (refused)" if boot.refused else kind, took, bit="" if kind == "nvme" else boot.bit,
                               ring="" if kind == "nvme" else boot.talk.said(name, "ring") or "split", bytes_verified=verified,
                               negotiated=features_of(features))
            if figures := boot.figures(name):
                row.path, row.requests, row.faults = figures.get("address_path") or "", figures.get("completions"), boot.faults(name, figures)
                row.exposure_percent = boot.exposure(name)
            self.judge(row, boot, lambda some: some.wrong(name), peer="", stopped=stopped)
            for sample in boot.samples(name) if kind == "nvme" else []:
                append_row(self.results / "samples.jsonl", {"system": self.system.name, "title": self.system.title, "bit": boot.bit, **sample})
            image.unlink(missing_ok=True)


# The verdict of a machine that could not be, in the way that is known.
AS_EXPECTED = "does not work, as expected"


# What QEMU does not do, a machine and what it says then.
@dataclasses.dataclass(frozen=True)
class Limit:
    """A machine that cannot be, as far as QEMU goes."""

    title: str
    platform: Platform
    expected: str        # a regular expression of what is to be found in a log
    reason: str
    memory: str = "shared"


LIMITS = [
    Limit("x86-64, VT-d without caching-mode=on", dataclasses.replace(_VTD, devices=("-device", "intel-iommu,intremap=off")),
          "requires caching mode", "QEMU ends as soon as the guest switches its IOMMU on"),
    Limit("x86-64, VT-d first-stage translation",
          dataclasses.replace(_VTD, devices=("-device", "intel-iommu,intremap=off,caching-mode=on,scalable-mode=on,fsts=on"),
                              words="intel_iommu=on,sm_on nvme_core.admin_timeout=5"),
          r"nvme nvme0: .*", "QEMU passes no map on, so the function reaches nothing"),
    Limit("x86-64, no IOMMU, memory with share=off", PLATFORMS["off"], r"nvme nvme0: .*",
          "QEMU passes on the descriptor of a copy, which cannot be told apart: the guest sees no answer", "private"),
]


class VfioUserLimits(VfioUserSystem):
    """Machines that say what QEMU cannot. A row that works all of a sudden has failed: the lab does not know that yet."""

    def work(self) -> None:
        if not self.has_qemu():
            return
        for number, limit in enumerate(LIMITS):
            self.started += self.seconds
            self._try(limit, self.folder / f"limit{number}")

    def _try(self, limit: Limit, folder: Path) -> None:
        folder.mkdir()
        ends, image = self.backends(folder), folder / "nvme0n1.img"
        random_image(image, 8 * MIB, 16 * MIB)
        disk = ends.start_function("nvme", "nvme0n1", image).disk("raw")
        machine = GuestMachine(limit.platform, [disk], bit=False, extra="nvme", strict_boot=True, memory=limit.memory, program=self.program)
        before, failure = part_sum(image), ""
        try:
            self.guest(machine, folder=folder, limit=150).run()
        except Wrong as wrong:
            failure = str(wrong)
        stopped = ends.stop("nvme0n1")
        row = self.new_row("nvme")
        row.title = limit.title
        said = (folder / "qemu.log").read_text(errors="replace") + (folder / "console.log").read_text(errors="replace")
        found = re.search(f".*{limit.expected}.*", said)
        if stopped or not failure or not found or part_sum(image) != before:
            self.report(row, FAILED, stopped or failure or "it works: the lab does not know this yet")
        else:
            # without the kernel's clock before it
            self.report(row, OK, f"{limit.reason}: {re.sub(r'^.[ 0-9.]+. ', '', found.group(0).strip())}", shown=AS_EXPECTED)
        image.unlink()
