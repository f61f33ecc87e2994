"""QEMU's command line for a guest: a platform, its disks, and what starts its kernel."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .debian import package
from .initramfs import initramfs
from .kernel import kernel
from .places import LabError
from .platforms import Platform
from .processes import Word


MEMORY = {"shared": "memory-backend-memfd,id=mem,size=SIZE,share=on", "ram": "memory-backend-ram,id=mem,size=SIZE",
          "private": "memory-backend-memfd,id=mem,size=SIZE,share=off"}


@dataclass(frozen=True)
class Disk:
    """A device of a guest: a disk or a source of entropy with a vhost-user back-end at a socket, a PCI function of a vfio-user server at
    one, or QEMU's own disk with a file."""

    workload: str                        # one of Tests/Guests/workloads
    socket: Path | None = None
    file: Path | None = None
    entropy: bool = False
    vfio_user: bool = False              # the server behind the socket is all of the device
    nvme: bool = False                   # an NVMe controller; else it is virtio
    ring: str = "split"
    queues: int = 1
    size: int | None = None              # of a queue, in descriptors
    reconnect: bool = False              # look every second for a back-end that is gone
    io_thread: bool = False              # QEMU's own, in a thread of its own
    device: Mapping[str, str] = field(default_factory=dict)     # more options of QEMU's device
    drive: Mapping[str, str] = field(default_factory=dict)      # and of the drive, for QEMU's own

    def options(self) -> str:
        """The device's options, but for its place."""
        # of a whole function the server decides, and of an NVMe controller no virtio option
        if self.vfio_user:
            return "".join(f",{name}={value}" for name, value in self.device.items())
        if self.nvme:
            return ",".join(f"{name}={value}" for name, value in {"serial": "nvme", "max_ioqpairs": self.queues, **self.device}.items())
        # the entropy device knows no legacy and has one queue
        options = "vectors=2" if self.entropy else f"num-queues={self.queues},disable-legacy=on"
        if self.ring == "packed":
            options += ",packed=on"
        if self.size:
            options += f",queue-size={self.size}"
        return options + "".join(f",{name}={value}" for name, value in self.device.items())

    def devices(self, number: int, options: str) -> list[str]:
        """What QEMU is told: the connection and the device."""
        if self.vfio_user:
            # the server's address is an object, which only JSON can say
            more = dict(word.split("=", 1) for word in options.split(",") if word)
            return ["-device", json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(self.socket)}, **more})]
        if self.entropy:
            return ["-chardev", f"socket,id=chardev{number},path={self.socket}", "-device", f"vhost-user-rng-pci,chardev=chardev{number},{options}"]
        if self.socket:
            again = ",reconnect=1" if self.reconnect else ""
            return ["-chardev", f"socket,id=chardev{number},path={self.socket}{again}",
                    "-device", f"vhost-user-blk-pci,chardev=chardev{number},{options}"]
        thread = ["-object", f"iothread,id=iothread{number}"] if self.io_thread else []
        drive = "".join(f",{name}={value}" for name, value in self.drive.items())
        return [*thread, "-drive", f"file={self.file},format=raw,if=none,id=drive{number},discard=unmap,detect-zeroes=off{drive}",
                "-device", f"{'nvme' if self.nvme else 'virtio-blk-pci'},drive=drive{number},{options}{f',iothread=iothread{number}' if self.io_thread else ''}"]


@dataclass(frozen=True)
class GuestMachine:
    """A guest's machine, ready to be started."""

    platform: Platform
    disks: Sequence[Disk]
    bit: bool | None = None              # does QEMU offer VIRTIO_F_ACCESS_PLATFORM (iommu_platform); by default where there is an IOMMU
    processors: int = 1
    extra: str = ""                      # fio or vfio in the guest's initramfs
    reboots: bool = False
    firmware: str = ""                   # the firmware, uefi or bios, starts what it finds on the disks
    strict_boot: bool = False            # SeaBIOS leaves disks alone that it does not boot from: it drives all of them else, and leaves its rings behind
    memory: str = "shared"               # with a descriptor that a back-end can map; `ram` has none, `private` one of a copy
    program: Sequence[Word] = ()   # QEMU, where it is not the host's own

    def name(self, number: int) -> str:
        """What the guest calls a device: virtio disks and NVMe controllers are counted each for themselves."""
        disk = self.disks[number]
        if disk.entropy:
            return "rng"
        before = sum(other.nvme == disk.nvme and not other.entropy for other in self.disks[:number])
        return f"nvme{before}n1" if disk.nvme else f"vd{chr(ord('a') + before)}"

    def parts(self) -> tuple[list[str], str]:
        """The devices, and the words for the kernel."""
        if not self.disks:
            raise LabError("which disk?")
        translated = self.platform.translates if self.bit is None else self.bit
        devices, words = list(self.platform.devices), self.platform.words
        for number, disk in enumerate(self.disks):
            # what is no virtio device of QEMU's has no such choice
            asked = translated and not (disk.nvme or disk.vfio_user)
            before, place = self.platform.place(number, asked)
            devices += before + disk.devices(number, disk.options() + (",iommu_platform=on" if asked else "") + place)
            words += f" sluice.{self.name(number)}={disk.workload}"
        if not self.reboots:
            devices.append("-no-reboot")
        return devices, f"mitigations=off {words} panic={0 if self.reboots else -1}"

    def command(self, folder: Path) -> list[Word]:
        """The command line. The guest's console is console.log in the folder, its reports go through talk.in and talk.out."""
        devices, words = self.parts()
        platform = self.platform
        return [*(self.program or [platform.program]), "-nodefaults", "-no-user-config", "-display", "none",
                "-machine", f"{platform.machine},memory-backend=mem", "-accel", "tcg,thread=multi", *platform.processor,
                "-smp", str(self.processors), "-m", platform.memory,
                "-object", MEMORY[self.memory].replace("SIZE", platform.memory),
                "-chardev", f"pipe,id=talk,path={folder}/talk", *self.boot(folder, words),
                *(["-boot", "strict=on"] if self.strict_boot else []), *devices]

    def boot(self, folder: Path, words: str) -> list[Word]:
        """Kernel, command line and serial lines. A second line for the guest's reports exists on x86-64 alone; elsewhere the console
        carries them, and the kernel is told to be brief."""
        platform = self.platform
        serial: list[Word] = ["-serial", f"file:{folder}/console.log", "-serial", "chardev:talk"]
        if self.firmware == "bios":
            return serial
        if self.firmware:
            # it writes to its variables, so they are a copy
            files = package("bookworm", "amd64", "ovmf") / "usr/share/OVMF"
            shutil.copyfile(files / "OVMF_VARS_4M.fd", folder / "variables.fd")
            return [*serial, "-drive", f"if=pflash,format=raw,readonly=on,file={files}/OVMF_CODE_4M.fd",
                    "-drive", f"if=pflash,format=raw,file={folder}/variables.fd"]
        image = kernel(platform.kernel, platform.architecture) / "image"
        archive = initramfs(platform.kernel, self.extra, platform.architecture)
        if platform.name == "xen":
            packed = package("bookworm", "amd64", "xen-hypervisor-4.17-amd64") / "boot/xen-4.17-amd64.gz"
            (folder / "xen").write_bytes(gzip.decompress(packed.read_bytes()))
            return [*serial, "-kernel", folder / "xen", "-append", "console=com1 com1=115200,8n1 dom0_mem=768M loglvl=warning",
                    "-initrd", f"{image} console=hvc0 loglevel=5 {words.replace(',', ',,')},{archive}"]
        if platform.console:
            return ["-serial", "chardev:talk", "-kernel", image, "-initrd", archive,
                    "-append", f"console={platform.console} loglevel=4 sluice.talk=/dev/{platform.console} {words}"]
        return [*serial, "-kernel", image, "-initrd", archive, "-append", f"console=ttyS0 loglevel=5 tsc=reliable no_timer_check {words}"]
