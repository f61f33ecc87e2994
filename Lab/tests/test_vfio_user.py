"""Functions over vfio-user: their machines, what is wrong with a row, and the relay in a server's place."""

import json
import os
import socket
import struct
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from lab import qemu
from lab.backend import BackEnds
from lab.catalogue import JOBS, SYSTEM_NEEDS, USUAL
from lab.jobs import vfio_user
from lab.jobs.vfio_user import BEHIND, FunctionBoot, VfioUserSystem, qemu_command
from lab.places import LabError, Settings, Skipped, part_sum
from lab.processes import Processes
from lab.qemu import Disk, GuestMachine
from lab.relay import DMA_READ, HEADER, Relay
from lab.talk import Talk

FIGURES: dict[str, Any] = {"failed_sessions": 0, "memory_bytes": 640 << 20, "reachable_bytes": 640 << 20, "faults": 0, "completions": 9, "address_path": "physical",
                           "negotiated_features": [1, 32]}
REFUSED = "disk=vda step=bypass read=255 write=255 buffer=kept used=0 device_status=79"
STUCK = "disk=vda step=refused driver=waits access_platform=0 features=1,32,"


class Machines(unittest.TestCase):
    def command(self, behind: str, memory: str) -> list[str]:
        disks = [Disk("raw", socket=Path("/b.sock"), vfio_user=True), Disk("rng", socket=Path("/r.sock"), entropy=True, vfio_user=True),
                 Disk("raw", socket=Path("/n.sock"), nvme=True, vfio_user=True), Disk("raw", file=Path("/q.img"), nvme=True)]
        machine = GuestMachine(BEHIND[behind], disks, bit=False, memory=memory)
        with mock.patch.object(qemu, "kernel", lambda *_: Path("/kernel")), mock.patch.object(qemu, "initramfs", lambda *_: Path("/initramfs")):
            return [str(word) for word in machine.command(Path("/folder"))]

    def test_the_servers_address_is_json_and_no_option_of_virtio_is_beside_it(self) -> None:
        words = self.command("vtd", "shared")
        functions = [json.loads(word) for word in words if word.startswith("{")]
        self.assertEqual(functions[0], {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "/b.sock"}, "bus": "port0"})
        self.assertEqual([function["bus"] for function in functions], ["port0", "port1", "port2"])
        self.assertIn("intel-iommu,intremap=off,caching-mode=on", words)
        self.assertTrue(any(word.startswith("nvme,drive=drive3,serial=nvme,") and "iommu_platform" not in word for word in words))

    def test_every_kind_is_counted_for_itself(self) -> None:
        self.assertIn("sluice.vda=raw sluice.rng=rng sluice.nvme0n1=raw sluice.nvme1n1=raw", " ".join(self.command("none", "ram")))

    def test_memory_has_a_descriptor_or_none_or_one_of_a_copy(self) -> None:
        for memory, said in (("shared", "memory-backend-memfd,id=mem,size=640M,share=on"), ("ram", "memory-backend-ram,id=mem,size=640M"),
                             ("private", "memory-backend-memfd,id=mem,size=640M,share=off")):
            self.assertIn(said, self.command("none", memory))

    def test_a_qemu_that_cannot_be_had_is_said(self) -> None:
        for found, reason in ((mock.Mock(side_effect=LabError("no\narchive")), "no archive"), (mock.Mock(return_value=["false"]), "has no vfio-user-pci")):
            with mock.patch.object(vfio_user, "inside", found), mock.patch.object(os, "getuid", return_value=0), self.assertRaisesRegex(Skipped, reason):
                qemu_command(Path("/folder"))
        with mock.patch.object(os, "getuid", return_value=1), self.assertRaisesRegex(Skipped, "a chroot needs root"):
            qemu_command(Path("/folder"))

    def test_make_test_has_a_selection(self) -> None:
        self.assertLess({"lab-vfio-user-vtd", "lab-vfio-user-taken", "lab-vfio-user-vtd-ram"}, set(USUAL))
        self.assertTrue(all("trixie" in SYSTEM_NEEDS[name] for name in SYSTEM_NEEDS if name.startswith(("vfio-user", "nvme"))))
        self.assertIn("lab-nvme-commands", JOBS)


class Rows(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.settings = Settings.of({"SLUICE": "/bin/sluice"})

    def boot(self, system: str, bit: str, *lines: str) -> FunctionBoot:
        job = VfioUserSystem(f"lab-{system}", self.folder, self.folder, self.settings, Processes())
        boot = FunctionBoot(job, bit, self.folder / f"{system}-{bit}", self.settings)
        (boot.folder / "talk.log").write_text("".join(f"SLUICE-GUEST {line}\n" for line in lines))
        boot.talk = Talk(boot.folder / "talk.log")
        boot.image("vda").write_bytes(b"image")
        boot.original["vda whole"] = part_sum(boot.image("vda"))
        return boot

    def told(self, boot: FunctionBoot, **figures: Any) -> str | None:
        (boot.folder / "vda.json").write_text(json.dumps({**FIGURES, **figures}))
        return boot.wrong("vda")

    def test_behind_an_iommu_nothing_moves_without_the_bit(self) -> None:
        boot = self.boot("vfio-user-vtd", "off", REFUSED, STUCK, "disk=vda verdict=ok")
        self.assertIsNone(self.told(boot, completions=0, faults=3))
        self.assertEqual(self.told(boot, completions=0), "the server counted no fault")
        self.assertEqual(self.told(boot, completions=1, faults=3), "1 requests were completed")
        boot.image("vda").write_bytes(b"other")
        self.assertEqual(self.told(boot, completions=0, faults=3), "the image changed")

    def test_a_buffer_that_was_written_is_told_and_so_is_a_driver_that_got_an_answer(self) -> None:
        boot = self.boot("vfio-user-vtd", "off", REFUSED.replace("kept", "written"), STUCK, "disk=vda verdict=ok")
        self.assertRegex(self.told(boot, completions=0, faults=3) or "", "a program with physical addresses got an answer")
        boot = self.boot("vfio-user-amd", "off", REFUSED, STUCK.replace("waits", "ended"), "disk=vda verdict=ok")
        self.assertEqual(self.told(boot, completions=0, faults=3), "Linux's driver did not wait for an answer")

    def test_without_descriptor_the_server_has_none_of_the_guests_memory(self) -> None:
        boot = self.boot("vfio-user-vtd-ram", "off", REFUSED, STUCK, "disk=vda verdict=ok")
        self.assertIsNone(self.told(boot, completions=0, faults=3, memory_bytes=0, reachable_bytes=0))
        self.assertEqual(self.told(boot, completions=0, faults=3), "the server has a descriptor of the guest's memory")

    def test_exposure_is_of_what_can_be_reached_either_way(self) -> None:
        boot = self.boot("vfio-user-vtd-ram", "on")
        (boot.folder / "vda.json").write_text(json.dumps({**FIGURES, "memory_bytes": 0, "reachable_bytes": 0, "bytes_without_descriptor": 64 << 20}))
        self.assertEqual(boot.exposure("vda"), 10)

    def test_a_function_that_is_not_served_leaves_the_others_alone(self) -> None:
        boot = self.boot("vfio-user-none", "on")
        boot.ends = BackEnds(Settings.of({"SLUICE": "/bin/false"}), Processes(), boot.folder)
        self.assertEqual(boot.start(), [])
        self.assertEqual(boot.wrong("rng"), "the back-end did not start")


class Relays(unittest.TestCase):
    def test_a_relay_passes_on_what_is_not_its_own(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"{folder}/server")
            listener.listen(1)
            relay = Relay(Path(folder, "relay"), Path(folder, "server"))
            machine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            machine.settimeout(10)
            machine.connect(f"{folder}/relay")
            server, _ = listener.accept()
            server.settimeout(10)
            with tempfile.TemporaryFile() as file:
                command = HEADER.pack(7, 2, HEADER.size + 4, 0, 0) + b"maps"
                socket.send_fds(machine, [command], [file.fileno()])
                data, descriptors, _, _ = socket.recv_fds(server, 64, 4)
                self.assertEqual((data, len(descriptors)), (command, 1))
                self.assertTrue(os.path.sameopenfile(file.fileno(), descriptors[0]))
                os.close(descriptors[0])
            server.sendall(HEADER.pack(7, 2, HEADER.size, 1, 0))
            self.assertEqual(machine.recv(64), HEADER.pack(7, 2, HEADER.size, 1, 0))

            answers: list[tuple[int, bytes]] = []
            asking = threading.Thread(target=lambda: answers.append(relay.read(0x1000, 4)))
            asking.start()
            asked = machine.recv(64)
            number, what, _, _, _ = HEADER.unpack(asked[: HEADER.size])
            self.assertEqual((what, struct.unpack("<QQ", asked[HEADER.size:])), (DMA_READ, (0x1000, 4)))
            machine.sendall(HEADER.pack(number, what, HEADER.size, 0x21, 19))
            asking.join(10)
            self.assertEqual(answers, [(19, b"")])
            # the server hears nothing of that
            server.setblocking(False)
            self.assertRaises(BlockingIOError, server.recv, 1)
            for end in (machine, server, listener):
                end.close()
            relay.close()
