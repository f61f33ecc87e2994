"""The guest's IOMMU on and off and on again by resets of one machine, with one back-end.

QEMU keeps the kernel's words of `-append` as long as it lives. So the machine boots from a disk whose loader (GRUB, from Debian's packages,
unpacked and never installed) reads the words anew each time: the host writes others before a reset."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..debian import package
from ..initramfs import initramfs
from ..kernel import kernel, kernel_version
from ..monitor import WORDS
from ..places import Wrong
from ..processes import run, until
from .adverse import AdverseJob

SECTOR = 512


class BootDisk:
    """A disk that starts the guest's kernel, with an initramfs that has the extras; nothing of it changes but the words. The loader is in its first sectors, then come the words,
    the kernel and the initramfs."""

    words_at, words_sectors, kernel_at = 2000, 4, 2048

    def __init__(self, file: Path, extra: str = "") -> None:
        self.file = file
        modules = package("bookworm", "amd64", "grub-pc-bin") / "usr/lib/grub/i386-pc"
        version = kernel_version(kernel("6.1"))
        linux = (package("bookworm", "amd64", f"linux-image-{version}") / "boot" / f"vmlinuz-{version}").read_bytes()
        archive = initramfs("6.1", extra).read_bytes()
        sectors, behind = -(-len(linux) // SECTOR), -(-len(archive) // SECTOR)
        self.linux, self.archive = f"(hd0){self.kernel_at}+{sectors}", f"(hd0){self.kernel_at + sectors}+{behind}"
        first, loader, log = (file.with_name(name) for name in ("first.cfg", "loader", "loader.log"))
        first.write_text(f"configfile (hd0){self.words_at}+{self.words_sectors}\n")
        maker = package("bookworm", "amd64", "grub-common") / "usr/bin/grub-mkimage"
        if run([maker, "-d", modules, "-O", "i386-pc", "-p", "(hd0)", "-c", first, "-o", loader, "biosdisk", "linux", "configfile", "normal"], 60, log):
            raise Wrong("no disk to boot from")
        file.write_bytes(b"")
        os.truncate(file, (self.kernel_at + sectors + behind) * SECTOR)
        for sector, data in ((0, (modules / "boot.img").read_bytes()), (1, loader.read_bytes()), (self.kernel_at, linux), (self.kernel_at + sectors, archive)):
            self._put(sector, data)

    def say(self, words: str) -> None:
        """What the kernel is told from the next reset on."""
        text = f"linux {self.linux} {words}\ninitrd {self.archive}\nboot\n"
        self._put(self.words_at, text.encode().ljust(self.words_sectors * SECTOR))

    def _put(self, sector: int, data: bytes) -> None:
        with open(self.file, "r+b") as disk:
            disk.seek(sector * SECTOR)
            disk.write(data)


# A driver that translates, one that does not, and so on, of one machine: each finds what the one before wrote. (R015, R016, R114)
class Toggle(AdverseJob):
    """Two resets of four are in the middle of writes, the other two are the guest's own reboot."""

    title, usual_turns = "IOMMU toggled by reboots", 4
    states = {"on": ("intel_iommu=on iommu.strict=1", "DMA"), "off": ("intel_iommu=off", "none")}

    def prepare(self) -> None:
        self.booted = {"on": 0, "off": 0}

    def seconds_allowed(self) -> float:
        # a boot for each turn, from a BIOS disk
        return self.limit + self.turns * self.limit / 3

    def move(self) -> None:
        disk = BootDisk(self.folder / "boot.img")
        state = "on"
        self._say(disk, state)
        self.begin("", boot=disk.file)
        while True:
            self._look(state)
            if self.turn == self.turns:
                break
            self.turn += 1
            state = "off" if state == "on" else "on"
            self._say(disk, state)
            self._reset()
        self.machine.tell("stop")

    def _say(self, disk: BootDisk, state: str) -> None:
        disk.say(f"{WORDS} sluice.vda=sequence sluice.threads={self.threads} sluice.arena=16 {self.states[state][0]}")

    def _look(self, state: str) -> None:
        self.wait_for_turn(f"with the IOMMU {state}, boot {self.turn}: nothing was written", 3 + self.turn % 4, 180)
        group = self.machine.talk.said("vda", "group")
        if group != self.states[state][1]:
            raise Wrong(f"boot {self.turn}: told to have the IOMMU {state}, the guest's disk has the group {group}")
        if self.machine.talk.said("vda", "access_platform") != "yes":
            raise Wrong(f"boot {self.turn}: the driver did not take bit 33")
        # QEMU translates in both states, with the IOMMU off by identity
        self.sampled()
        self.booted[state] += 1

    def _reset(self) -> None:
        seen = self.machine.events("RESET")
        if self.turn % 4 < 2:
            time.sleep(self.turn * 37 % 100 / 1000)
            self.machine.must("the machine cannot be reset", "system_reset")
        else:
            self.machine.tell("reboot")
            if not until(60, lambda: self.machine.events("RESET") > seen or not self.machine.runs()):
                raise Wrong(f"boot {self.turn}: the guest does not reboot")

    def done(self) -> str:
        return f"booted {self.booted['on']} times with the IOMMU on and {self.booted['off']} times with it off, in turn"
