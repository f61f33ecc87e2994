"""Parsing of what a guest says, and a guest's end."""

import tempfile
import unittest
from pathlib import Path

from lab.guest import Guest
from lab.places import Wrong
from lab.processes import Processes
from lab.talk import Talk, words_of

SAID = """\
SLUICE-GUEST disk=vda ring=split queues=2 access_platform=yes group=DMA-FQ cache= features=2,4,33\r
SLUICE-GUEST disk=vdb ring=packed
SLUICE-GUEST disk=vda step=read boot=1 md5=aa
noise SLUICE-GUEST disk=vda step=read boot=2 md5=bb
SLUICE-GUEST disk=vda step=write md5=cc
SLUICE-GUEST ack disk=vda 0=4 1=7
SLUICE-GUEST ack disk=vda 0=9
SLUICE-GUEST error disk=vda lost thread=1 block=2
SLUICE-GUEST disk=vdb verdict=bad reason=a_write_was_lost
SLUICE-GUEST kernel=6.1 hypervisor=xen bounced= faults=0 early_faults=1 seconds=3.2 verdict=bad
"""


class Shell:
    """In QEMU's place: a shell that talks through the pipes."""

    def __init__(self, script: str) -> None:
        self.script = script

    def command(self, folder: Path) -> list[str]:
        return ["sh", "-c", f"exec 3>{folder}/talk.out 4<{folder}/talk.in; {self.script}"]


class Parsing(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.log = Path(folder.name, "talk.log")
        self.log.write_text(SAID)
        self.talk = Talk(self.log)

    def test_what_was_said_last_of_a_disk_counts(self) -> None:
        self.assertEqual(self.talk.said("vda", "ring"), "split")
        self.assertEqual(self.talk.said("vda", "md5"), "cc")
        self.assertEqual(self.talk.said("vda", "md5", step="read"), "bb")
        self.assertEqual(self.talk.said("vda", "md5", step="read", boot="1"), "aa")
        self.assertEqual(self.talk.said("vda", "features"), "2,4,33")

    def test_what_was_not_said_is_empty(self) -> None:
        self.assertEqual(self.talk.said("vdb", "md5"), "")
        self.assertEqual(self.talk.said("vda", "cache"), "")
        self.assertEqual(Talk(self.log.with_name("none")).said("vda", "ring"), "")

    def test_reports_of_a_kind_are_counted(self) -> None:
        self.assertEqual(self.talk.heard("ack"), 2)
        self.assertEqual(self.talk.heard("begin"), 0)

    def test_the_verdict_is_that_of_all_disks(self) -> None:
        self.assertEqual(self.talk.verdict, "bad")
        self.assertEqual(self.talk.last("hypervisor"), "xen")
        self.assertEqual(len(self.talk.complaints()), 3)

    def test_a_line_that_begins_in_one_machine_ends_in_the_next(self) -> None:
        one, other = self.log.with_name("one"), self.log.with_name("other")
        one.write_text("SLUICE-GUEST ack disk=vda 0=1")
        other.write_text("2 1=3\nSLUICE-GUEST ack disk=vda 0=13\n")
        self.assertEqual(Talk(one, other).reports()[0]["0"], "12")

    def test_a_line_that_is_no_report_has_no_words(self) -> None:
        self.assertEqual(words_of("[ 0.1] virtio_blk virtio0: disk=vda"), {})


class GuestEnds(unittest.TestCase):
    def run_guest(self, script: str, limit: float = 10, at: dict[str, object] | None = None) -> Guest:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        with Processes() as processes:
            guest = Guest(processes, Path(folder.name), Shell(script), limit, at)    # type: ignore[arg-type]
            guest.run()
            return guest

    def test_a_good_verdict_is_a_good_end_and_a_pause_is_answered(self) -> None:
        seen: list[str] = []
        guest = self.run_guest("echo SLUICE-GUEST disk=vdb pause=working >&3; read answer <&4; "
                               "echo SLUICE-GUEST answer=$answer seconds=1 verdict=ok >&3", at={"working": seen.append})
        self.assertEqual((seen, guest.talk.last("answer")), (["vdb"], "go"))

    def test_every_other_end_is_told(self) -> None:
        for script, limit, reason in (
            ("echo SLUICE-GUEST disk=vda verdict=bad reason=it_broke >&3; echo SLUICE-GUEST seconds=1 verdict=bad >&3", 10, "the guest says: it broke"),
            ("echo SLUICE-GUEST seconds=1 verdict=ok >&3; exit 3", 10, "QEMU ended with status 3"),
            ("exit 0", 10, "the guest ended without a verdict"),
            ("sleep 60", 0.2, "no verdict within 0.2 s"),
        ):
            with self.subTest(reason), self.assertRaisesRegex(Wrong, reason):
                self.run_guest(script, limit)
