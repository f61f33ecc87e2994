"""QEMU's command line for every platform, against those that were run before (command_lines.txt, one a line)."""

import unittest
from pathlib import Path
from unittest import mock

from lab import qemu
from lab.platforms import PLATFORMS, platform
from lab.places import LabError
from lab.qemu import Disk, GuestMachine

KNOWN = Path(__file__).with_name("command_lines.txt")
FOLDER = Path("/folder")


def command_line(name: str) -> str:
    """A machine with a device of each kind, as one line."""
    kind = PLATFORMS[name]
    disks = [Disk("raw", socket=Path("/a.sock"), ring="packed", queues=4, size=128, reconnect=True, device={"indirect_desc": "off"}),
             Disk("fio", file=Path("/b.img"), io_thread=True, drive={"cache": "none"}),
             Disk("rng", socket=Path("/r.sock"), entropy=True)]
    machine = GuestMachine(kind, disks, processors=2, extra="fio", reboots=bool(kind.console), strict_boot=True)
    with (mock.patch.object(qemu, "kernel", lambda name, architecture: Path(f"/kernel-{name}-{architecture}")),
          mock.patch.object(qemu, "initramfs", lambda *words: Path(f"/initramfs-{'-'.join(words)}")),
          mock.patch.object(qemu, "package", lambda *words: Path("/package")),
          mock.patch("gzip.decompress", return_value=b""),
          mock.patch.object(Path, "read_bytes", return_value=b""), mock.patch.object(Path, "write_bytes")):
        return f"{name}: {' '.join(map(str, machine.command(FOLDER)))}"


class CommandLines(unittest.TestCase):
    def test_every_platform_has_the_command_line_it_had(self) -> None:
        known = KNOWN.read_text().splitlines()
        self.assertEqual([line.partition(":")[0] for line in known], list(PLATFORMS))
        for line in known:
            with self.subTest(line.partition(":")[0]):
                self.assertEqual(command_line(line.partition(":")[0]), line)

    def test_the_bit_is_offered_where_it_is_asked_for_and_nowhere_else(self) -> None:
        disk = Disk("raw", socket=Path("/a.sock"))
        for kind in PLATFORMS.values():
            for bit in (True, False, None):
                devices, _ = GuestMachine(kind, [disk], bit=bit).parts()
                self.assertEqual("iommu_platform=on" in devices[-2 if devices[-1] == "-no-reboot" else -1], kind.translates if bit is None else bit)

    def test_a_disk_without_the_bit_has_no_translation_services(self) -> None:
        devices, _ = GuestMachine(platform("strict"), [Disk("raw", socket=Path("/a.sock"))], bit=False).parts()
        self.assertNotIn("ats=on", " ".join(devices))

    def test_an_unknown_platform_and_no_disk_are_said(self) -> None:
        with self.assertRaisesRegex(LabError, "no platform 'vax'"):
            platform("vax")
        with self.assertRaisesRegex(LabError, "which disk"):
            GuestMachine(platform("off"), []).parts()
