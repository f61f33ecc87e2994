"""What jobs find wrong, and the command lines they run."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from lab.backend import BackEnds, options_for
from lab.job import read_rows
from lab.jobs.adverse import AdverseJob, Many, Rebind, Resets
from lab.jobs.conformance import PEERS, Check
from lab.jobs.matrix import discard_wrong, facts_wrong, halves_wrong
from lab.jobs.migrate import Migrate
from lab.jobs.plug import Memory, Plug, Restart
from lab.jobs.qos import Qos
from lab.jobs.systems import SystemBoot, SystemJob
from lab.jobs.toggle import Toggle
from lab.monitor import Machine, MonitorDisk
from lab.places import MIB, Settings, part_sum
from lab.processes import Processes
from lab.talk import Talk
from tests.test_figures import GOOD, PHYSICAL


class JobTests(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.processes = Processes()
        self.settings = Settings.of({"SLUICE": "/bin/sluice", "SLUICE_OPTIONS": "--lock running"})

    def talk(self, *lines: str) -> Talk:
        (self.folder / "talk.log").write_text("".join(f"SLUICE-GUEST {line}\n" for line in lines))
        return Talk(self.folder / "talk.log")


class Verdicts(JobTests):
    def test_a_mode_that_became_another_one_is_told(self) -> None:
        talk = self.talk("disk=vda ring=split queues=2 access_platform=yes group=DMA")
        self.assertIsNone(facts_wrong(talk, "vda", "strict", "split", 2))
        self.assertIsNone(facts_wrong(talk, "vda", "virtio", "split", 2))
        for arguments, reason in ((("lazy", "split", 2), "the IOMMU group is DMA, expected DMA-FQ"),
                                  (("strict", "packed", 2), "asked for a packed ring, the guest uses split"),
                                  (("strict", "split", 4), "asked for 4 queues, the guest uses 2"),
                                  (("off", "split", 2), "VIRTIO_F_ACCESS_PLATFORM is 'yes', expected 'no'")):
            self.assertEqual(facts_wrong(talk, "vda", *arguments), reason)
        self.assertEqual(facts_wrong(self.talk("disk=vda ring=split queues=2 access_platform=yes group=none"), "vda", "amd", "split", 2),
                         "the device has no IOMMU group")

    def test_both_halves_of_a_disk_must_be_as_both_sides_saw_them(self) -> None:
        image = self.folder / "image"
        image.write_bytes(b"a" * 100 + b"b" * 100)
        one, other = part_sum(image, 0, 100), part_sum(image, 100)
        self.assertIsNone(halves_wrong(self.talk(f"disk=vda step=read md5={one}", f"disk=vda step=write md5={other}"), "vda", image, one, 100))
        for said, original, reason in (((other, other), one, "the guest read other bytes than the image held"),
                                       ((other, other), other, "the half that was only read changed"),
                                       ((one, one), one, "the image does not hold what the guest wrote")):
            talk = self.talk(f"disk=vda step=read md5={said[0]}", f"disk=vda step=write md5={said[1]}")
            self.assertEqual(halves_wrong(talk, "vda", image, original, 100), reason)

    def test_what_is_discarded_must_be_gone(self) -> None:
        image = self.folder / "image"
        image.write_bytes(b"a" * 8 * MIB + bytes(8 * MIB))
        self.assertRegex(discard_wrong(image, part_sum(image, 0, 4 * MIB)) or "", "the image still holds .*: nothing was punched out")
        self.assertEqual(discard_wrong(image, "other"), "the quarter that was left alone changed")
        with open(image, "r+b") as file:
            file.truncate(8 * MIB)
            file.truncate(16 * MIB)
        self.assertIsNone(discard_wrong(image, part_sum(image, 0, 4 * MIB)))

    def test_a_device_of_a_system(self) -> None:
        job = SystemJob("lab-strict", self.folder, self.folder, self.settings, self.processes)
        boot = SystemBoot(job, "on", self.folder / "on", self.settings)
        boot.image("vda").write_bytes(b"a" * 8 * MIB + b"b" * 8 * MIB)
        one, other = (part_sum(boot.image("vda"), start, 8 * MIB) for start in (0, 8 * MIB))
        boot.original["vda"] = one
        boot.talk = self.talk("disk=vda ring=split queues=2 access_platform=yes group=DMA features=1,33", f"disk=vda step=read md5={one}",
                              f"disk=vda step=write md5={other}", "disk=vda verdict=ok")
        boot.failure = "another disk failed"
        self.assertEqual(boot.wrong("vda"), "sluice explain gave no answer")
        self.assertIsNone(boot.account_wrong("vda", {**GOOD, "negotiated_features": [33, 1]}))
        self.assertEqual(boot.account_wrong("vda", {**GOOD, "negotiated_features": [1]}), "the guest reads the features [1, 33], the back-end tells [1]")
        boot.expected_path = "physical"
        self.assertIsNone(boot.account_wrong("vda", {**PHYSICAL, "negotiated_features": [1]}))
        self.assertEqual(boot.wrong("vdb"), "another disk failed")


class Adverse(JobTests):
    def rows(self, name: str, kind: type[AdverseJob], settings: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        with (Processes() as processes, contextlib.redirect_stdout(io.StringIO()),
              mock.patch("lab.jobs.adverse.check", return_value=(True, "3 writes acknowledged, 1 generations, none lost"))):
            kind(name, self.folder, self.folder, Settings.of(settings), processes).work()
        return read_rows(self.folder / "results.jsonl")[-1], read_rows(self.folder / "events.jsonl")[-1]

    def test_a_back_end_that_does_not_start_is_a_row(self) -> None:
        row, moved = self.rows("rebind-off", Rebind, {"SLUICE": "/bin/false"})
        self.assertEqual((row["verdict"], row["name"]), ("failed", "off unbind and bind"))
        self.assertEqual(row["reason"], "the back-end did not start (12 times unbound; 3 writes acknowledged, 1 generations, none lost)")
        self.assertEqual((moved["verdict"], moved["title"], moved["acknowledged"], moved["reason"]), ("failed", "unbind and bind", 3, "the back-end did not start"))

    def test_every_job_says_when_its_back_end_cannot(self) -> None:
        for kind in (Rebind, Resets, Many, Migrate, Plug, Restart, Memory, Toggle, Qos):
            with self.subTest(kind.__name__):
                row, moved = self.rows("some-strict", kind, {"BACKEND": "qemu"})
                self.assertEqual((row["verdict"], row["reason"], moved["verdict"]), ("skipped", "qemu cannot", "not run"))

    def test_every_job_ends_in_a_row_when_its_back_end_does_not_start(self) -> None:
        for kind in (Resets, Many, Migrate, Plug, Restart, Memory):
            with self.subTest(kind.__name__):
                self.assertEqual(self.rows("some-off", kind, {"SLUICE": "/bin/false"})[0]["verdict"], "failed")


class CommandLines(JobTests):
    def backend(self, kind: str) -> list[str]:
        settings = Settings.of({"SLUICE": "/bin/sluice", "SLUICE_OPTIONS": "--lock running", "BACKEND": kind})
        ends = BackEnds(settings, self.processes, Path("/folder"))
        started: list[Any] = []
        ends._start = started.append     # type: ignore[method-assign, assignment]
        ends.start_disk("vda", Path("/image"), 2, options_for("amd"))
        return [str(word) for word in started[0].command()] if kind != "qemu" else [str(started[0].disk("raw").file)]

    def test_back_ends(self) -> None:
        self.assertEqual(self.backend("sluice"), ["/bin/sluice", "serve", "blk", "--socket-path", "/folder/vda.sock", "--blk-file", "/image", "--num-queues",
                                                  "2", "--serial", "vda", "--lock", "running", "--translations", "once"])
        self.assertEqual(self.backend("qsd"), [
            "qemu-storage-daemon", "--blockdev", "driver=file,filename=/image,node-name=file,discard=unmap", "--export",
            "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=/folder/vda.sock,writable=on,num-queues=2"])
        self.assertEqual(self.backend("qemu"), ["/image"])

    def test_peers_are_given_the_places_of_a_run(self) -> None:
        for name, peer in PEERS.items():
            if not peer.chroot:
                check = Check(f"check-{name}", self.folder, self.folder, self.settings, self.processes)
                words = " ".join(map(str, check._command(peer.serve)))
                self.assertIn(f"{self.folder}/peer.sock", words)
                self.assertNotRegex(words, "SOCKET|IMAGE|SHARED|FOLDER|SLUICE|PREFIX")

    def test_a_machine_under_a_monitor(self) -> None:
        machine = Machine(self.processes, Path("/folder"), "strict", 10)
        ends = BackEnds(self.settings, self.processes, Path("/folder"))
        ends._start = lambda made: made  # type: ignore[method-assign]
        disk = MonitorDisk(0, ends.start_disk("disk", Path("/image"), 1), "strict", reconnect=True)
        words = machine.command("", disk.options(), Path("/boot.img"), ",slots=4,maxmem=2G")
        self.assertIn("393224K,slots=4,maxmem=2G", words)
        self.assertLess(words.index("intel-iommu,intremap=off,device-iotlb=on"), words.index(disk.device))
        self.assertIn("socket,id=chardev0,path=/folder/disk.sock,reconnect=1", words)
        self.assertTrue(disk.device.endswith("bus=port0,num-queues=1,disable-legacy=on,iommu_platform=on,ats=on"))
        self.assertEqual(disk.connection()["backend"]["data"]["reconnect"], 1)
