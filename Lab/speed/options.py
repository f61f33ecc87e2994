"""Measures disks in guests with fio: Sluice's, qemu-storage-daemon's and QEMU's own, without an IOMMU and behind VT-d.

    Scripts/speed [--quick] [--json] [--modes off,strict,lazy,pt] [--patterns rw:block:depth,...] [--rounds N] [--seconds S]
                  [--before PATH] [--variant NAME:SLUICE-OPTIONS:DEVICE-OPTIONS]... [--disk-options DEVICE-OPTIONS]
                  [--peers qsd,qemu|none] [--image-dir DIR] [--direct] [--delay MS]

--before PATH      an older sluice is one more disk of the same guests, in the same rounds: what it has become, as ratios.
--variant          one more disk of this sluice, with other options of its own (words) or of QEMU's device (with commas), say
                   `sync:--engine sync:` or `noind::indirect_desc=off`; its ratios are to the disk without. Up to three. One whose name
                   begins with nvme or vfioblk is a function over vfio-user: `nvmedb:--doorbells shared:`.
--disk-options     options of QEMU's device for every disk, say event_idx=off. SLUICE_OPTIONS are for this sluice's disks.
--peers            what else is measured.
--image-dir DIR    images in a folder of a file system that is no tmpfs; --direct: every disk goes around the page cache.
--delay MS         storage that answers every read, write and flush late (implies --direct): to be looked at for itself.

A machine with two noisy processors gives no figure twice, so everything is compared with what ran seconds before: one guest
a mode is booted, they all stay, and only one of them ever works. A round goes through the patterns; within a pattern through
the guests; within a guest through its disks, a turn each. Which disk begins moves on from round to round. A ratio is the median
over the rounds of each round's ratio. A guest that waits for its turn is halted: what it and its back-ends use then is
counted and printed, as is what the rest of the machine took from the runs.

Every disk has one split queue of 128 (what qemu-storage-daemon is made for), an image on the same storage and a thread of its
own: the back-end's, or for QEMU's own an iothread. CPU is user and system time of the whole QEMU process and of the back-end
between two stops of the guest: after fio has started and set up the turn's job, and after its last request. fio is the host's,
with its libraries: what its start costs is not measured, and while it runs it is the same code as a static one.

qemu-storage-daemon cannot translate addresses: with an IOMMU only QEMU's own disk, behind the same IOMMU, is there to compare.

--modes vfio-off,vfio-strict   a QEMU with vfio-user-pci (Scripts/lab/chroot sid: root), without an IOMMU and behind VT-d strict with
                               caching-mode=on; in each guest, besides Sluice's vhost-user disk, its virtio-blk (vfioblk) and its NVMe
                               controller (nvme) over vfio-user, and QEMU's own virtio-blk (qemu) and NVMe controller
                               (qemunvme), which knows no iothread and has the main loop's.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from lab.places import LabError, Settings

MODES = ("off", "strict", "lazy", "pt")
# of a machine with vfio-user-pci, which has more disks
VFIO_MODES = ("vfio-off", "vfio-strict")
PEERS = ("qsd", "qemu")
PATTERNS = "randread:4k:1,randread:4k:32,randwrite:4k:1,randwrite:4k:32,read:128k:8,write:128k:8"
QUICK_PATTERNS = "randread:4k:1,randread:4k:32,randwrite:4k:32"
FLAGS = ("--json", "--quick", "--direct")
VALUES = (
    *("--modes", "--patterns", "--rounds", "--seconds", "--before", "--variant", "--disk-options"),
    *("--peers", "--image-dir", "--delay"),
)


@dataclass(frozen=True)
class Served:
    """A disk that a Sluice serves: its name, the program, its further options and those of QEMU's device."""

    name: str
    program: Path
    words: tuple[str, ...] = ()
    device: str = ""
    function: str = ""      # over vfio-user: nvme or blk


@dataclass
class Options:
    """What is measured."""

    served: list[Served]
    modes: list[str] = field(default_factory=lambda: list(MODES))
    peers: list[str] = field(default_factory=lambda: list(PEERS))
    patterns: list[str] = field(default_factory=list)
    rounds: int = 5
    seconds: float = 0
    json: bool = False
    disk_options: str = ""
    image_folder: Path | None = None
    direct: bool = False
    # milliseconds; 0: storage of no delay
    delay: int = 0

    def targets(self, mode: str) -> list[str]:
        """The disks of a guest, in the order of their turns. qemu-storage-daemon is there without an IOMMU alone."""
        functions = mode in VFIO_MODES
        peers = [peer for peer in self.peers if peer != "qsd" or mode == "off"]
        if functions and "qemu" in peers:
            peers.append("qemunvme")
        return [disk.name for disk in self.served if functions or not disk.function] + peers

    @property
    def turns(self) -> int:
        """How many turns there are, at most."""
        return self.rounds * len(self.patterns) * len(self.modes) * max(len(self.targets(mode)) for mode in self.modes)

    @property
    def limit(self) -> int:
        """Seconds that a guest may live. It lives through the turns of all: what they take, twice, and the boots."""
        return int(self.turns * (self.seconds + 1) * 2 + 300)

    @property
    def patience(self) -> int:
        """Seconds after which a turn has stalled."""
        return int(self.seconds + 30)


def parse(words: list[str], settings: Settings) -> Options:
    """Reads the command line; refuses what cannot be measured before anything starts."""
    flags: set[str] = set()
    values: dict[str, str] = {}
    options = Options([Served("sluice", settings.sluice, settings.options)])
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in FLAGS:
            flags.add(word)
            continue
        if word.startswith("--") and not rest:
            raise LabError(f"{word} needs a value; --help says which")
        if word not in VALUES:
            raise LabError(f"unknown option {word}; --help says which there are")
        value = rest.pop(0)
        if word == "--before":
            _add(options, Served("before", Path(os.path.realpath(value))))
        elif word == "--variant":
            _add(options, _variant(value, settings))
        else:
            values[word] = value
    options.json, options.direct = "--json" in flags, "--direct" in flags
    _choose(options, values, "--quick" in flags)
    return options


def _variant(text: str, settings: Settings) -> Served:
    name, _, both = text.partition(":")
    if ":" not in both:
        raise LabError("--variant: NAME:SLUICE-OPTIONS:DEVICE-OPTIONS, of which the last two may be empty")
    words, _, device = both.rpartition(":")
    function = "nvme" if name.startswith("nvme") else "blk" if name.startswith("vfioblk") else ""
    if function and len(name) > 8:
        # with the mode before it, it is a controller's serial number of twenty characters
        raise LabError(f"{name}: the name of a function has up to eight characters")
    return Served(name, settings.sluice, (*settings.options, *words.split()), device, function)


def _add(options: Options, disk: Served) -> None:
    # the name is in a serial number of twenty characters, behind the mode
    if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", disk.name):
        raise LabError(f"{disk.name}: a disk's name is up to twelve small letters and digits")
    if disk.name in [other.name for other in options.served]:
        raise LabError(f"there is a disk {disk.name} already")
    if disk.name in ("qsd", "qemu", "qemunvme", "off"):
        raise LabError(f"{disk.name} is the name of another disk or mode: take another name")
    if not os.access(disk.program, os.X_OK):
        raise LabError(f"there is no program {disk.program}")
    options.served.append(disk)


def _choose(options: Options, values: dict[str, str], quick: bool) -> None:
    """What the options say, what follows where they say nothing, and what cannot be."""
    rounds = values.get("--rounds", "1" if quick else "5")
    seconds = values.get("--seconds", "1" if quick else "")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", rounds):
        raise LabError(f"--rounds {rounds}: a number from 1 on")
    if seconds and (not re.fullmatch(r"[0-9]+(\.[0-9]+)?", seconds) or float(seconds) == 0):
        raise LabError(f"--seconds {seconds}: a number above 0")
    folder = values.get("--image-dir")
    if folder is not None:
        options.image_folder = Path(folder)
        if not options.image_folder.is_dir():
            raise LabError(f"--image-dir {folder}: there is no such folder")
    options.rounds = int(rounds)
    options.disk_options = values.get("--disk-options", "")
    options.modes = _list("--modes", values.get("--modes", ",".join(MODES)), "|".join(MODES + VFIO_MODES), f"none of {', '.join(MODES + VFIO_MODES)}")
    if set(options.modes) & set(VFIO_MODES):
        ours = options.served[0]
        for name, function in (("vfioblk", "blk"), ("nvme", "nvme")):
            _add(options, Served(name, ours.program, ours.words, function=function))
    pattern = r"(rand)?(read|write|rw):[0-9]+k:[1-9][0-9]*"
    patterns = values.get("--patterns", QUICK_PATTERNS if quick else PATTERNS)
    options.patterns = _list("--patterns", patterns, pattern, "not like randread:4k:32")
    peers = values.get("--peers", ",".join(PEERS))
    options.peers = [] if peers in ("none", "") else _list("--peers", peers, "|".join(PEERS), "none of qsd, qemu, or none alone")
    if "--delay" in values:
        if not re.fullmatch(r"[1-9][0-9]*", values["--delay"]):
            raise LabError(f"--delay: {values['--delay']} is not a number of milliseconds above 0")
        if options.image_folder:
            raise LabError("--delay and --image-dir: one or the other")
        # or the page cache would have all of it after a second
        options.delay, options.direct = int(values["--delay"]), True
    if len([disk for disk in options.served if not disk.function]) > 5:
        raise LabError("more than three variants: each is a disk of every guest")
    # with many disks the turns become shorter, so that the rounds that were asked for end within a quarter of an hour
    options.seconds = float(seconds) if seconds else min(1.5, max(0.7, 780 / options.turns - 1))


def _list(option: str, text: str, pattern: str, wrong: str) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if not re.fullmatch(pattern, part):
            raise LabError(f"{option}: {part} is {wrong}")
    return parts


def device_options(text: str) -> dict[str, str]:
    """Options of QEMU's device, `a=b,c=d`; of one that is said twice the later counts."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {name: value for name, _, value in pairs}


def shown(words: tuple[str, ...]) -> str:
    """Options as a person would type them."""
    return shlex.join(words)
