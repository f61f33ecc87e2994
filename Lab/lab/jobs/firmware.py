"""The lab's system whose disk is driven by UEFI firmware before Linux gets it."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

from ..backend import read_figures
from ..debian import package
from ..figures import Figures, wrong_figures
from ..initramfs import initramfs
from ..kernel import kernel, kernel_version
from ..places import MIB, Wrong, empty_image, part_sum, random_image
from ..platforms import platform
from ..processes import Word, run
from ..qemu import Disk, GuestMachine
from .systems import ENTROPY_BYTES, SystemBoot, SystemJob, features_of

# what edk2's driver takes of what is offered (its VirtioBlkDxe reads the bits one by one), besides bit 33
FIRMWARE_FEATURES = [6, 9, 10, 32]
HALF = 24 * MIB
EVENT_IDX = 29


def make_boot_disk(image: Path, file: Path, words: str, log: Path, extra: str = "") -> None:
    """Makes a disk that UEFI firmware starts a guest from: in its first half a FAT file system with Debian's kernel, its initramfs and a
    script for the firmware's shell, which first copies `file` on the disk, to `copy`; the second half is empty."""
    version = kernel_version(kernel("6.1"))
    # what the lab's other guests start is the ELF file inside; firmware wants it with its EFI stub
    linux = package("bookworm", "amd64", f"linux-image-{version}") / "boot" / f"vmlinuz-{version}"
    script = image.with_name("startup.nsh")
    script.write_text(f"fs0:\r\ncp file copy\r\nvmlinuz.efi initrd=\\initrd {words}\r\n")
    empty_image(image, HALF)
    files = {"vmlinuz.efi": linux, "initrd": initramfs("6.1", extra), "file": file, "startup.nsh": script}
    commands: list[list[Word]] = [["mformat", "-i", image, "-T", str(HALF // 512), "::"]]
    commands += [["mcopy", "-i", image, source, f"::{name}"] for name, source in files.items()]
    if any(run(command, 60, log) for command in commands):
        raise Wrong("the boot disk could not be made")
    os.truncate(image, 2 * HALF)


def before_linux(now: Figures, _: Figures | None) -> bool:
    """Is this of the firmware? Linux wants EVENT_IDX, this firmware does not. When it hands over it resets the disk, and after that no
    address path is in force."""
    return bool(now["completions"] > 0 and now["address_path"] and EVENT_IDX not in now["negotiated_features"])


class FirmwareBoot(SystemBoot):
    """The firmware copies a file on the disk, then starts the kernel that is on it; Linux reads the half of the disk that holds all this,
    and writes the other."""

    keep = staticmethod(before_linux)

    def start(self) -> list[Disk]:
        words = "console=ttyS0 loglevel=5 tsc=reliable no_timer_check mitigations=off intel_iommu=on iommu.strict=1 panic=-1 sluice.vda=raw sluice.vdb=raw"
        random_image(self.folder / "file", 2 * MIB)
        random_image(self.image("vdb"), 8 * MIB, 16 * MIB)
        self.original["vdb"] = part_sum(self.image("vdb"), 0, 8 * MIB)
        make_boot_disk(self.image("vda"), self.folder / "file", words + (" sluice.rng=rng" if self.ours else ""), self.folder / "bootdisk.log")
        disks = [self.ends.start_disk(name, self.image(name), 2).disk("raw", ring=ring, queues=2) for name, ring in self.rings.items()]
        return [*disks, *self.start_entropy()]

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(platform("strict"), disks, bit=self.bit == "on", processors=2, firmware="uefi")

    @property
    def by_firmware(self) -> Figures | None:
        """What the back-end said last while the firmware drove the disk."""
        return self.watch.kept if self.watch else None

    def firmware_wrong(self) -> str | None:
        """What the firmware did: it read the kernel and the initramfs, or nothing else would have run, and it copied a file."""
        copy, log = self.folder / "copy", self.folder / "bootdisk.log"
        if not self.talk.said("vda", "verdict"):
            return self.failure or "the guest was not started from the disk"
        if run(["mcopy", "-n", "-i", self.image("vda"), "::copy", copy], 60, log):
            return "the firmware made no copy of the file"
        if not filecmp.cmp(self.folder / "file", copy, shallow=False):
            return "the firmware's copy of the file is another one"
        if not self.ours:
            return None
        if not self.by_firmware:
            return "sluice explain gave no answer while the firmware ran"
        expected = FIRMWARE_FEATURES + ([33] if self.bit == "on" else [])
        if self.by_firmware["negotiated_features"] != expected:
            return f"the firmware negotiated {self.by_firmware['negotiated_features']}, expected {expected}"
        return wrong_figures(self.by_firmware, "strict" if self.bit == "on" else "off")

    def linux_wrong(self) -> str | None:
        """Linux on the disk it came from."""
        talk, image, bit = self.talk, self.image("vda"), "yes" if self.bit == "on" else "no"
        if talk.said("vda", "verdict") != "ok":
            return self.failure or "no verdict"
        if talk.said("vda", "group") != "DMA":
            return f"the IOMMU group is {talk.said('vda', 'group')}, expected DMA"
        if talk.said("vda", "access_platform") != bit:
            return f"bit 33 is '{talk.said('vda', 'access_platform')}' in the guest"
        if talk.said("vda", "md5", step="read") != part_sum(image, 0, HALF):
            return "the guest read other bytes than the image holds"
        if part_sum(image, HALF) != talk.said("vda", "md5", step="write"):
            return "the image does not hold what the guest wrote"
        return self.account_wrong("vda", read_figures(self.folder / "vda.json"))


class FirmwareSystem(SystemJob):
    """The boot disk is two rows: while the firmware drives it, and while Linux does."""

    boots, pictured = FirmwareBoot, False

    def report_boot(self, boot: SystemBoot, took: float) -> None:
        assert isinstance(boot, FirmwareBoot)
        for name in [*boot.rings, *(["rng"] if boot.ours else [])]:
            stopped, ring, check = boot.ends.stop(name), boot.rings.get(name) or boot.talk.said("rng", "ring"), lambda some: some.wrong(name)
            device, verified = ("rng", ENTROPY_BYTES) if name == "rng" else ("blk", 16 * MIB)
            if name == "vda":
                row = self.new_row("blk (firmware)", took, bit=boot.bit, ring=ring, bytes_verified=4 * MIB,
                                   negotiated=(boot.by_firmware or {}).get("negotiated_features", []))
                row.take(boot.by_firmware)
                self.judge(row, boot, FirmwareBoot.firmware_wrong, "qemu", stopped)
                device, verified, check = "blk (Linux)", 2 * HALF, FirmwareBoot.linux_wrong
            row = self.new_row(device, took, bit=boot.bit, ring=ring, bytes_verified=verified, negotiated=features_of(boot.talk.said(name, "features")))
            row.take(boot.figures(name))
            self.judge(row, boot, check, "" if name == "rng" else "qemu", stopped)
        for name in boot.rings:
            boot.image(name).unlink(missing_ok=True)
