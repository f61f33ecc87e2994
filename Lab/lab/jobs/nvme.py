"""The lab's NVMe controller under drivers besides Linux's reading and writing: nvme-cli, resets and removals in the guest, and the
firmwares that boot from it."""

from __future__ import annotations

import filecmp
import os

from ..places import MIB, part_sum, random_image
from ..processes import run
from ..qemu import Disk, GuestMachine
from .firmware import HALF, make_boot_disk
from .matrix import halves_wrong
from .toggle import BootDisk
from .vfio_user import BEHIND, FunctionBoot, VfioUserSystem

NAME = "nvme0n1"
WORDS = "console=ttyS0 loglevel=5 tsc=reliable no_timer_check mitigations=off panic=-1"


class ControllerBoot(FunctionBoot):
    """A boot with one controller."""

    work, extra = "raw", "nvme"

    def start(self) -> list[Disk]:
        self.devices = {NAME: "nvme"}
        self.make()
        return [self.ends.start_function("nvme", NAME, self.image(NAME)).disk(self.work)]

    def make(self) -> None:
        """Makes the image."""
        random_image(self.image(NAME), 8 * MIB, 16 * MIB)
        self.original[NAME] = part_sum(self.image(NAME), 0, 8 * MIB)

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(BEHIND[self.behind], disks, bit=False, processors=2, extra=self.extra, strict_boot=True, program=self.job.program)


class CommandsBoot(ControllerBoot):
    """nvme-cli in the guest: see the workload."""

    work, extra = "commands", "nvme fio nvme-cli"


class NVMeSystem(VfioUserSystem):
    """One boot, and what it shows."""

    boots: type[ControllerBoot] = ControllerBoot
    behind_what = "vtd"
    device = "nvme"

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.behind, self.shared = self.behind_what, True

    def work(self) -> None:
        if not self.has_qemu():
            return
        self.report_functions(self.boots(self, "on", self.folder / "on", self.settings).run(), self.seconds)


class NVMeCommands(NVMeSystem):
    """Commands, refusals, resets and removals, and fio, behind VT-d strict."""

    boots = CommandsBoot


class BIOSBoot(ControllerBoot):
    """SeaBIOS's driver loads GRUB, and GRUB through it the kernel and its initramfs; Linux reads the disk it came from, and writes the
    half behind."""

    def make(self) -> None:
        image = self.image(NAME)
        BootDisk(image, "nvme").say(f"{WORDS} sluice.{NAME}=raw")
        half = -(-image.stat().st_size // (8 * MIB)) * 8 * MIB
        os.truncate(image, 2 * half)
        self.half = half
        self.original[NAME] = part_sum(image, 0, half)

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(BEHIND[self.behind], disks, bit=False, processors=2, firmware="bios", strict_boot=False, program=self.job.program)

    def data_wrong(self, name: str) -> str | None:
        return halves_wrong(self.talk, name, self.image(name), self.original[name], self.half)


class NVMeFromBIOS(NVMeSystem):
    """A boot from the controller by SeaBIOS, without an IOMMU."""

    boots, behind_what = BIOSBoot, "none"


class UEFIBoot(ControllerBoot):
    """OVMF's driver copies a file on the disk and loads the kernel; then as above."""

    def make(self) -> None:
        random_image(self.folder / "file", 2 * MIB)
        words = f"{WORDS} {BEHIND[self.behind].words} sluice.{NAME}=raw"
        make_boot_disk(self.image(NAME), self.folder / "file", words, self.folder / "bootdisk.log", "nvme")

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(BEHIND[self.behind], disks, bit=False, processors=2, firmware="uefi", program=self.job.program)

    def data_wrong(self, name: str) -> str | None:
        copy, image = self.folder / "copy", self.image(name)
        if run(["mcopy", "-n", "-i", image, "::copy", copy], 60, self.folder / "bootdisk.log"):
            return "the firmware made no copy of the file"
        if not filecmp.cmp(self.folder / "file", copy, shallow=False):
            return "the firmware's copy of the file is another one"
        # the firmware wrote to the first half, before Linux read it
        return halves_wrong(self.talk, name, image, part_sum(image, 0, HALF), HALF)


class NVMeFromUEFI(NVMeSystem):
    """A boot from the controller by OVMF, whose Linux then sets VT-d up."""

    boots = UEFIBoot
