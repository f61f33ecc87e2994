"""The lab's systems: each boots once with VIRTIO_F_ACCESS_PLATFORM (bit 33) off and once with it on, with a split and a packed disk and,
where the machine has it, the entropy device. Every device is a row of systems.jsonl."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backend import BackEnds, options_for, qemu_version, read_figures
from ..debian import inside
from ..figures import Figures, wrong_figures
from ..job import FAILED, OK, SKIPPED, Job, append_row, first_wrong
from ..places import MIB, Settings, Wrong, part_sum, random_image
from ..platforms import platform
from ..qemu import Disk, GuestMachine
from ..talk import Talk
from ..watch import Keep, Watch, one_that_did_most
from .matrix import halves_wrong

VERDICTS = {OK: "ok", FAILED: "failed", SKIPPED: "not run"}
ENTROPY_BYTES = 65536


@dataclass(frozen=True)
class System:
    """What a system's job has to know of it."""

    name: str
    title: str
    iommu: str = ""                  # the platform, where it is not the name
    path_on: str = "platform"        # how the back-end takes addresses with the bit on
    group: str = ""                  # what the kernel calls the disk's IOMMU group
    suite: str = ""                  # whose QEMU it is, where that is not the host's
    front_end: str = ""

    @property
    def platform(self) -> str:
        """The name of its platform."""
        return self.iommu or self.name


SYSTEMS = {system.name: system for system in (
    System("none", "x86-64, no IOMMU", iommu="off", path_on="physical", group="none"),
    System("strict", "x86-64, VT-d strict", group="DMA"),
    System("lazy", "x86-64, VT-d lazy", group="DMA-FQ"),
    System("pt", "x86-64, VT-d passthrough", group="identity"),
    System("amd", "x86-64, AMD-Vi"),
    System("virtio", "x86-64, virtio-iommu"),
    System("swiotlb", "x86-64, swiotlb=force", path_on="physical", group="none"),
    System("xen", "Xen 4.17, PV dom0", path_on="physical", group="none"),
    System("smmu", "arm64, SMMUv3", group="DMA"),
    System("spapr", "ppc64le, pseries"),
    System("zpci", "s390x, zPCI"),
    System("ccw", "s390x, ccw"),
    System("vfio", "x86-64, VT-d, vfio-pci in the guest", iommu="strict"),
    System("ovmf", "x86-64, OVMF, VT-d strict", iommu="strict", group="DMA"),
    System("sun4u", "SPARC64 sun4u, OpenBIOS"),
    System("qemu10", "x86-64, VT-d strict", iommu="strict", group="DMA", suite="trixie"),
    System("qemu11", "x86-64, VT-d strict", iommu="strict", group="DMA", suite="sid"),
    *(System(f"vfio-user-{behind}{kind}", f"vfio-user: {title}{memory}")
      for behind, title in (("none", "no IOMMU"), ("vtd", "VT-d strict"), ("pt", "VT-d passthrough"), ("virtio", "virtio-iommu"), ("amd", "AMD-Vi"))
      for kind, memory in (("", ""), ("-ram", ", memory without descriptor"))),
    System("vfio-user-limits", "vfio-user"),
    System("vfio-user-taken", "vfio-user: VT-d strict, memory without descriptor, server taken over"),
    System("nvme-commands", "vfio-user: VT-d strict, nvme-cli"),
    System("nvme-seabios", "vfio-user: SeaBIOS"),
    System("nvme-ovmf", "vfio-user: OVMF, VT-d strict"),
    System("uml", "user-mode Linux 6.1", front_end="user-mode Linux"),
    System("libblkio", "no machine", front_end="libblkio"),
    System("dpdk", "no machine", front_end="DPDK"),
)}


@dataclass
class DeviceRow:
    """What the table says of one device in one run."""

    system: str
    title: str
    front_end: str
    device: str = "blk"
    bit: str = ""
    ring: str = ""
    path: str = ""
    negotiated: list[int] = field(default_factory=list)
    requests: int | None = None
    bytes_verified: int | None = None
    faults: int | None = None
    exposure_percent: float | None = None
    seconds: float = 0
    backend: str = ""
    verdict: str = ""
    reason: str = ""

    def take(self, figures: Figures | None) -> None:
        """Takes the row's figures from what `sluice explain` said at the device's end."""
        if figures:
            self.path = figures.get("address_path") or ""
            self.requests, self.faults = figures["completions"], figures["faults"]
            memory = figures["memory_bytes"]
            self.exposure_percent = int(figures["peak_reachable_bytes"] * 100000 / memory + 0.5) / 1000 if memory else None


def features_of(text: str) -> list[int]:
    """Feature bits as a guest lists them."""
    return [int(number) for number in text.split(",") if number]


class SystemBoot:
    """One boot of a system, with its back-ends; `failure` says why it is no good."""

    rings = {"vda": "split", "vdb": "packed"}
    keep: Keep | None = staticmethod(one_that_did_most)     # of what a watch beside the boot sees; without it there is none
    looks = {"done": ""}              # when the guest stands still its back-end is asked; the name of the answer, where it is not the disk's

    def __init__(self, job: SystemJob, bit: str, folder: Path, settings: Settings) -> None:
        self.job, self.system, self.bit, self.folder, self.settings = job, job.system, bit, folder, settings
        self.expected_path = self.system.path_on if bit == "on" else "physical"
        folder.mkdir(parents=True)
        self.ends = BackEnds(settings, job.processes, folder)
        self.talk = Talk(folder / "talk.log")
        self.original: dict[str, str] = {}
        self.failure: str | None = None
        self.watch: Watch | None = None

    @property
    def ours(self) -> bool:
        """Is Sluice the back-end?"""
        return self.settings.backend == "sluice"

    def image(self, name: str) -> Path:
        """A disk's image."""
        return self.folder / f"{name}.img"

    def withholds(self) -> bool:
        """QEMU 10 and 11 pass on to the guest all that an entropy back-end offers, bit 33 too, and without iommu_platform then do not
        translate what the guest's IOMMU was told: there the back-end has to keep the bit to itself."""
        return bool(self.system.suite) and self.bit == "off"

    def run(self) -> SystemBoot:
        """Boots it once."""
        try:
            disks = self.start()
            if self.ours and self.keep:
                self.watch = Watch(self.ends["vda"], keep=self.keep)
            looks = {pause: lambda disk, name=name: self.ends.explain(disk, name or disk) for pause, name in self.looks.items()}
            self.job.guest(self.machine(disks), looks, self.folder).run()
        except Wrong as wrong:
            self.failure = str(wrong)
        finally:
            if self.watch:
                self.watch.stop()
        return self

    def start(self) -> list[Disk]:
        """Its back-ends."""
        disks = []
        options = options_for(self.system.platform) if self.bit == "on" else ()
        for name, ring in self.rings.items():
            random_image(self.image(name), 8 * MIB, 16 * MIB)
            self.original[name] = part_sum(self.image(name), 0, 8 * MIB)
            disks.append(self.ends.start_disk(name, self.image(name), 2, options).disk("raw", ring=ring, queues=2))
        return [*disks, *self.start_entropy(options)]

    def start_entropy(self, options: tuple[str, ...] = ()) -> list[Disk]:
        """The back-end of the entropy device, which is Sluice's alone."""
        if not self.ours:
            return []
        self.ends.start_entropy("rng", (*options, *(("--access-platform", "off") if self.withholds() else ())))
        return [Disk("rng", socket=self.ends["rng"].socket, entropy=True)]

    def machine(self, disks: list[Disk]) -> GuestMachine:
        """The machine it boots on."""
        suite = self.system.suite
        program = inside(suite, self.folder, ["qemu-system-x86_64"]) if suite else []
        return GuestMachine(platform(self.system.platform), disks, bit=self.bit == "on", processors=2, program=program)

    def wrong(self, name: str) -> str | None:
        """What is wrong with a device after its boot."""
        talk, group = self.talk, self.system.group
        bit = "yes" if self.bit == "on" else "no"
        ring = self.rings.get(name, talk.said(name, "ring"))
        if self.failure and talk.said(name, "verdict") != "ok":
            return self.failure
        if talk.said(name, "access_platform") != bit:
            return f"bit 33 is '{talk.said(name, 'access_platform')}' in the guest, expected '{bit}'"
        if talk.said(name, "ring") != ring:
            return f"asked for a {ring} ring, the guest uses {talk.said(name, 'ring')}"
        if group and talk.said(name, "group") != group:
            return f"the IOMMU group is {talk.said(name, 'group')}, expected {group}"
        if self.system.name == "xen" and talk.last("hypervisor") != "xen":
            return "the guest does not run under Xen"
        if self.system.name == "swiotlb" and self.bit == "on" and not re.match("[1-9]", talk.last("bounced")):
            return "nothing went through the swiotlb"
        if name == "rng" and talk.said("rng", "bytes", step="entropy") != str(ENTROPY_BYTES):
            return "no entropy arrived"
        if name != "rng" and (wrong := halves_wrong(talk, name, self.image(name), self.original[name])):
            return wrong
        return self.account_wrong(name, self.figures(name), withheld=name == "rng" and self.withholds())

    def account_wrong(self, name: str, figures: Figures | None, withheld: bool = False) -> str | None:
        """What is wrong with what the back-end said of itself: its figures, and the features beside those that the guest reads. Of a
        peer nothing is known."""
        if not self.ours:
            return None
        if not figures:
            return "sluice explain gave no answer"
        iommu = "off" if self.expected_path == "physical" else self.system.platform
        return wrong_figures(figures, iommu, withheld) or self._features_differ(features_of(self.talk.said(name, "features")), figures)

    def _features_differ(self, inside_bits: list[int], figures: Figures) -> str | None:
        """The negotiated bits as the guest reads them and as the back-end tells them must be the same; but where there is nothing to
        translate, QEMU keeps bit 33 to itself."""
        seen = sorted(inside_bits)
        if self.bit == "on" and self.expected_path == "physical":
            seen = [bit for bit in seen if bit != 33]
        told = sorted(figures["negotiated_features"])
        return f"the guest reads the features {seen}, the back-end tells {told}" if seen != told else None

    def figures(self, name: str) -> Figures | None:
        """What a back-end said at its device's end."""
        return read_figures(self.folder / f"{name}.json")


Check = Callable[[Any], str | None]      # what is wrong with a device after such a boot


class SystemJob(Job):
    """A system of the lab, bit 33 off and on. The systems that are no guests of this kind are subclasses in modules of their own."""

    boots: type[SystemBoot] = SystemBoot
    pictured = True                   # its samples are in the picture of exposure

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.system = SYSTEMS[self.argument]
        self._peers = 0
        self.front_end = self.system.front_end

    def new_row(self, device: str = "blk", took: float | None = None, **values: object) -> DeviceRow:
        """A row of this system, which took so long, or until now."""
        seconds = int((self.seconds if took is None else took) * 10) / 10
        return DeviceRow(self.system.name, self.system.title, self.front_end, device, seconds=seconds, backend=self.settings.backend,
                         **values)  # type: ignore[arg-type]

    def report(self, row: DeviceRow, verdict: str, reason: str = "", shown: str = "") -> None:
        """Reports a row: for the table, with the verdict `shown` where it has one of its own, and as the job's."""
        row.verdict, row.reason = shown or VERDICTS[verdict], reason
        self.row(verdict, f"lab {row.system} {row.device} bit={row.bit} {row.ring}".rstrip(), reason)
        append_row(self.results / "systems.jsonl", dataclasses.asdict(row))

    def skip(self, reason: str, bit: str = "", front_end: str = "") -> None:
        """Reports that nothing could be run."""
        self.front_end = front_end or self.front_end
        self.report(self.new_row(bit=bit), SKIPPED, reason)

    def peer(self, kind: str, check: Check, boot: SystemBoot) -> str:
        """What a device that failed does with a back-end that is not ours."""
        what = "qemu-storage-daemon" if kind == "qsd" else "QEMU's own device"
        try:
            settings = dataclasses.replace(self.settings, backend=kind)
            self._peers += 1
            folder = Path(f"{boot.folder}-{kind}-{self._peers}")
            other = type(boot)(self, boot.bit, folder, settings).run()
            answer = check(other)
            for name in other.ends.all:
                other.ends.stop(name)
                other.image(name).unlink(missing_ok=True)
        except Exception as error:
            answer = f"it could not be run: {error}"
        return f"with {what}: {answer or 'it works'}"

    def judge(self, row: DeviceRow, boot: SystemBoot, check: Check, peer: str = "qemu", stopped: str | None = None) -> str | None:
        """Reports a device's row, with a peer's answer if it failed (none is asked where `peer` is empty); returns what was wrong."""
        reason = first_wrong(stopped, lambda: check(boot))
        if not reason:
            self.report(row, OK)
            return None
        row.bytes_verified = 0
        if peer:
            reason += f"; {self.peer(peer, check, boot)}"
        self.report(row, FAILED, reason)
        return reason

    def work(self) -> None:
        suite = self.system.suite
        if suite and os.getuid() != 0:
            self.skip("a chroot needs root", front_end=f"QEMU of {suite}")
            return
        self.front_end = qemu_version(around=inside(suite, self.folder, []) if suite else [])
        for bit in ("off", "on"):
            self.started += self.seconds
            boot = self.boots(self, bit, self.folder / bit, self.settings).run()
            self.report_boot(boot, self.seconds)
            if boot.watch and self.pictured:
                title = f"{self.system.title.partition(', ')[2]}, {self.front_end}" if suite else self.system.title
                for sample in boot.watch.samples:
                    append_row(self.results / "samples.jsonl", {"system": self.system.name, "title": title, "bit": bit, **sample})

    def report_boot(self, boot: SystemBoot, took: float) -> None:
        """Reports every device of a boot."""
        for name in [*boot.rings, *(["rng"] if boot.ours else [])]:
            stopped = boot.ends.stop(name)
            row = self.new_row("rng" if name == "rng" else "blk", took, bit=boot.bit, ring=boot.rings.get(name) or boot.talk.said("rng", "ring"),
                               bytes_verified=ENTROPY_BYTES if name == "rng" else 16 * MIB, negotiated=features_of(boot.talk.said(name, "features")))
            row.take(boot.figures(name))
            # qemu-storage-daemon knows no IOMMU and no packed ring
            peer = "" if name == "rng" else "qsd" if (boot.expected_path, boot.bit, row.ring) == ("physical", "off", "split") else "qemu"
            self.judge(row, boot, lambda some: some.wrong(name), peer, stopped)
            boot.image(name).unlink(missing_ok=True)
