"""Disks of every shape in one guest, and a guest that reboots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..backend import options_for, read_figures
from ..figures import wrong_figures
from ..guest import Guest
from ..job import SKIPPED, Job, first_wrong, wrong_unless
from ..places import MIB, Wrong, part_sum, random_image
from ..platforms import platform
from ..qemu import GuestMachine
from ..talk import Talk

# what the kernel calls the domain of a disk; a mode that quietly became another one proves nothing
GROUPS = {"off": "none", "strict": "DMA", "lazy": "DMA-FQ", "pt": "identity"}


def facts_wrong(talk: Talk, name: str, mode: str, ring: str, queues: int) -> str | None:
    """What the guest's kernel says of a disk must be what was asked for."""
    wanted, group = GROUPS.get(mode), talk.said(name, "group")
    bit = "no" if mode == "off" else "yes"
    if talk.said(name, "ring") != ring:
        return f"asked for a {ring} ring, the guest uses {talk.said(name, 'ring')}"
    if talk.said(name, "queues") != str(queues):
        return f"asked for {queues} queues, the guest uses {talk.said(name, 'queues')}"
    if talk.said(name, "access_platform") != bit:
        return f"VIRTIO_F_ACCESS_PLATFORM is '{talk.said(name, 'access_platform')}', expected '{bit}'"
    if wanted and group != wanted:
        return f"the IOMMU group is {group}, expected {wanted}"
    return "the device has no IOMMU group" if not wanted and group == "none" else None


def halves_wrong(talk: Talk, name: str, image: Path, original: str, half: int = 8 * MIB) -> str | None:
    """The guest read the host's half of a disk and wrote its own: both sides must have seen the same bytes."""
    if talk.said(name, "md5", step="read") != original:
        return "the guest read other bytes than the image held"
    if part_sum(image, 0, half) != original:
        return "the half that was only read changed"
    return "the image does not hold what the guest wrote" if part_sum(image, half) != talk.said(name, "md5", step="write") else None


def discard_wrong(image: Path, original: str) -> str | None:
    """A disk of four quarters after its workload `discard`: what the guest kept is untouched, the rest is zero and punched out."""
    quarter = 4 * MIB
    if part_sum(image, 0, quarter) != original:
        return "the quarter that was left alone changed"
    with open(image, "rb") as file:
        file.seek(2 * quarter)
        if any(file.read()):
            return "what was zeroed is not zero"
    allocated = image.stat().st_blocks * 512
    # a quarter holds data and a quarter may hold written zeroes; two quarters must be gone
    return f"the image still holds {allocated} bytes: nothing was punched out" if allocated > 2 * quarter + 65536 else None


@dataclass(frozen=True)
class Shape:
    """One disk of the matrix."""

    name: str
    ring: str
    queues: int
    workload: str


SHAPES = [Shape("vda", "split", 1, "raw"), Shape("vdb", "split", 4, "raw"), Shape("vdc", "packed", 1, "raw"), Shape("vdd", "packed", 4, "raw"),
          Shape("vde", "split", 4, "fio"), Shape("vdf", "packed", 4, "fio"), Shape("vdg", "split", 1, "discard"), Shape("vdh", "packed", 4, "discard")]


class Matrix(Job):
    """{split, packed} x {1, 4 queues} with data checked both ways, fio with verify, and discard: one boot."""

    def work(self) -> None:
        mode = self.argument
        if not self.able(mode):
            for shape in SHAPES:
                self.row(SKIPPED, self._title(shape), f"{self.settings.backend} cannot")
            return
        self.ends, self.original = self.backends(), dict[str, str]()
        disks, failure = [], None
        for shape in SHAPES:
            image = self._image(shape)
            random_image(image, (16 if shape.workload == "discard" else 8) * MIB, 16 * MIB)
            self.original[shape.name] = part_sum(image, 0, (4 if shape.workload == "discard" else 8) * MIB)
            try:
                end = self.ends.start_disk(shape.name, image, shape.queues, options_for(mode))
                disks.append(end.disk(shape.workload, ring=shape.ring, queues=shape.queues))
            except Wrong as wrong:
                failure = str(wrong)
        machine = GuestMachine(platform(mode), disks, processors=4, extra="fio")
        guest = self.guest(machine, {"working": self.ends.explain})
        if not failure:
            try:
                guest.run()
            except Wrong as wrong:
                failure = str(wrong)
        for shape in SHAPES:
            self.attempt(self._title(shape), lambda: self._judge(shape, guest, failure))
            self._image(shape).unlink()

    def _title(self, shape: Shape) -> str:
        return f"{self.argument} {shape.ring} {shape.queues}q {shape.workload}"

    def _image(self, shape: Shape) -> Path:
        return self.folder / f"{shape.name}.img"

    def _judge(self, shape: Shape, guest: Guest, failure: str | None) -> None:
        talk, mode, image, original = guest.talk, self.argument, self._image(shape), self.original[shape.name]
        wrong_unless(first_wrong(
            self.ends.stop(shape.name),
            # a verdict of one disk is its own; without any, the boot failed for all
            None if talk.said(shape.name, "verdict") == "ok" else failure,
            lambda: facts_wrong(talk, shape.name, mode, shape.ring, shape.queues),
            lambda: halves_wrong(talk, shape.name, image, original) if shape.workload == "raw" else None,
            lambda: discard_wrong(image, original) if shape.workload == "discard" else None,
            lambda: self._account_wrong(shape),
        ))

    def _account_wrong(self, shape: Shape) -> str | None:
        """What the back-end itself says, sampled while the guest worked."""
        if self.settings.backend != "sluice" or shape.workload != "raw":
            return None
        figures = read_figures(self.folder / f"{shape.name}.json")
        return wrong_figures(figures, self.argument) if figures else "sluice explain gave no answer"


class Reboot(Job):
    """The guest verifies, writes, reboots and verifies again, on two disks at once."""

    def work(self) -> None:
        self.attempt(f"{self.argument} reboot", self._reboot)

    def _reboot(self) -> None:
        self.must_be_able(self.argument)
        ends, original, rings = self.backends(), {}, {"vda": "split", "vdb": "packed"}
        for name in rings:
            image = self.folder / f"{name}.img"
            random_image(image, 8 * MIB)
            original[name] = part_sum(image, 0, 6 * MIB)
            ends.start_disk(name, image, 2)
        disks = [ends[name].disk("reboot", ring=ring, queues=2) for name, ring in rings.items()]
        guest = self.guest(GuestMachine(platform(self.argument), disks, processors=2, reboots=True))
        guest.run()
        for name in rings:
            wrong_unless(ends.stop(name))
            for boot in ("1", "2"):
                if guest.talk.said(name, "md5", step="read", boot=boot) != original[name]:
                    raise Wrong(f"boot {boot} read other bytes on {name}")
            (self.folder / f"{name}.img").unlink()
