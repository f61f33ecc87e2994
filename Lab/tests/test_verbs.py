import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from verbs import deploy, diagrams, docs_check, examples, fuzz, protocol, threads, try_guest, units
from verbs.deploy import Installation
from verbs.deploy_check import listing
from verbs.try_rows import figure_rows, row
from lab.talk import Talk


class Scratch(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def refused(self, action: object, status: int = 2) -> str:
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
            action()  # type: ignore[operator]
        self.assertEqual(end.exception.code, status)
        return said.getvalue()


class OptionTests(Scratch):
    def test_unknown_options_are_refused(self) -> None:
        for verb in (deploy, diagrams, protocol, fuzz, try_guest):
            with self.subTest(verb.__name__):
                self.assertIn("--nope", self.refused(lambda: verb.main(["--nope"])))

    def test_the_guest_that_was_asked_for(self) -> None:
        self.assertEqual(try_guest.Wish.of({}), try_guest.Wish("strict", "split", 1))
        self.assertEqual(try_guest.Wish.of({"IOMMU": "off", "RING": "packed", "QUEUES": "4"}), try_guest.Wish("off", "packed", 4))
        for wrong in ({"IOMMU": "x"}, {"RING": "x"}, {"QUEUES": "5"}):
            self.assertIn("not '", self.refused(lambda: try_guest.Wish.of(wrong)))


class DeployTests(Scratch):
    def setUp(self) -> None:
        super().setUp()
        made = self.folder / "made"
        for name in ("man/sluice.1", "completions/sluice.bash", "completions/sluice.zsh", "completions/sluice.fish"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(name)
        command = self.folder / "sluice"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        for name, value in (("MADE", made), ("COMMAND", command)):
            patch = mock.patch.object(deploy, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.root = self.folder / "root"
        self.root.mkdir()

    def installation(self) -> Installation:
        return Installation("/opt/here", str(self.root))

    def test_what_was_installed_is_removed_and_nothing_else(self) -> None:
        other = self.root / "opt/here/bin/other"
        other.parent.mkdir(parents=True)
        other.write_text("other")
        before = listing(self.root)
        self.installation().install()
        self.installation().install()
        self.assertEqual((self.root / "opt/here/bin/sluice-blk").readlink(), Path("sluice"))
        self.assertIn('"/opt/here/bin/sluice-rng"', (self.root / "usr/share/qemu/vhost-user/50-sluice-rng.json").read_text())
        self.installation().remove()
        self.assertEqual(listing(self.root), before)

    def test_what_an_earlier_version_installed_is_removed_too(self) -> None:
        first = self.installation()
        first.put(b"old", "/opt/here/share/old/file")
        first.install()
        self.installation().install()
        self.installation().remove()
        self.assertEqual(listing(self.root), [])

    def test_a_folder_that_something_else_moved_into_stays(self) -> None:
        self.installation().install()
        (self.root / "opt/here/share/man/man1/other.1").write_text("other")
        self.installation().remove()
        self.assertEqual([line.split()[0] for line in listing(self.root)][-1], "opt/here/share/man/man1/other.1")

    def test_nothing_to_remove_is_said(self) -> None:
        self.assertIn("nothing was installed there", self.refused(self.installation().remove, 1))


class DiagramTests(unittest.TestCase):
    def test_an_arrow_that_others_imply_is_left_out(self) -> None:
        arrows = {"A": {"B", "C"}, "B": {"C"}, "C": set(), "lone": set()}
        self.assertEqual(diagrams.reduced(arrows), {"A": {"B"}, "B": {"C"}, "C": set(), "lone": set()})
        lines = diagrams.dot(diagrams.reduced(arrows)).splitlines()
        self.assertEqual(lines[-4:], ["  A -> B;", "  B -> C;", "  lone;", "}"])

    def test_only_what_users_get_is_drawn(self) -> None:
        description = {
            "products": [{"targets": ["A"]}],
            "targets": [
                {"name": "A", "dependencies": [{"byName": ["CLinux", None]}, {"product": ["Logging", "swift-log", None, None]}]},
                {"name": "ATests", "dependencies": [{"byName": ["A", None]}]},
                {"name": "CLinux", "dependencies": []},
            ],
        }
        self.assertEqual(diagrams.shipped(description), {"A": {"CLinux"}, "CLinux": set()})


class ProtocolTests(unittest.TestCase):
    clean = "State-vector 1 byte, depth reached 3, errors: 0\n     1234 states, stored\n"
    wrong = "pan:1: assertion violated (x) (at depth 3)\nState-vector 1 byte, depth reached 3, errors: 1\n"

    def test_as_it_is_nothing_may_go_wrong(self) -> None:
        self.assertEqual(protocol.verdict(0, protocol.Finding.of(self.clean)), (True, "protocol: as it is: 0 errors in 1234 states"))
        self.assertFalse(protocol.verdict(0, protocol.Finding.of(self.wrong))[0])
        self.assertFalse(protocol.verdict(0, protocol.Finding.of(""))[0])

    def test_without_a_line_something_must(self) -> None:
        good, line = protocol.verdict(3, protocol.Finding.of(self.wrong))
        self.assertEqual((good, line), (True, "protocol: without line 3: assertion violated (x) (at depth 3)"))
        self.assertFalse(protocol.verdict(3, protocol.Finding.of(self.clean))[0])

    def test_the_lines_are_numbered(self) -> None:
        self.assertEqual(protocol.numbered("#if BREAK != 10\n#if BREAK == 2\n#if BREAK != 2"), [2, 10])


class DocsTests(Scratch):
    def test_every_file_that_a_page_names_must_be_there(self) -> None:
        page = self.folder / "documentation/virtio/index.html"
        page.parent.mkdir(parents=True)
        page.write_text('<script src="/base/js/a.js"></script><a href="/elsewhere"></a><link href="/base/b.css">')
        (self.folder / "b.css").touch()
        self.assertEqual(docs_check.missing(self.folder, "/base/"), ["/base/js/a.js", "/elsewhere", "data/documentation/virtio.json"])

    def test_a_reader_sees_no_scripts(self) -> None:
        self.assertEqual(docs_check.visible("<b>one</b>\n two<script>three\n</script > no</script>&amp; four"), "one two& four".replace("&", "&amp;"))


class FuzzTests(Scratch):
    def test_every_folder_but_the_corpora_is_a_target(self) -> None:
        self.assertNotIn("Corpora", fuzz.targets())
        self.assertIn("SplitChain", fuzz.targets())

    def test_runs_are_counted(self) -> None:
        self.assertEqual(fuzz.runs("x\nstat::number_of_executed_units: 4711\n"), 4711)
        self.assertEqual(fuzz.runs("crashed"), 0)


    def test_a_target_that_breaks_is_told_with_its_last_words(self) -> None:
        program = self.folder / "target"
        with mock.patch.multiple(fuzz, SCRATCH=self.folder, CORPORA=self.folder), mock.patch.object(fuzz, "TREE", self.folder):
            for words, held, line in (
                ("echo stat::number_of_executed_units: 5", True, "fuzz: target ok, 5 runs"),
                ("echo crashed; exit 77", False, "fuzz: target FAILED, see target.log"),
            ):
                program.write_text(f"#!/bin/sh\n{words}\n")
                program.chmod(0o755)
                with contextlib.redirect_stdout(io.StringIO()) as said:
                    self.assertEqual(fuzz.fuzz("target", program, 1), held)
                self.assertIn(line, said.getvalue())


class ExampleTests(Scratch):
    def started(self, words: str) -> str | None:
        program = self.folder / "example"
        program.write_text(f"#!{sys.executable}\nimport signal, socket, sys\n{words}\n")
        program.chmod(0o755)
        return examples.starts(program, ["disk"], self.folder / "socket", self.folder / "log")

    def test_one_that_listens_and_ends_is_well(self) -> None:
        self.assertIsNone(self.started("socket.socket(socket.AF_UNIX).bind(sys.argv[2]); signal.pause()"))

    def test_one_that_does_not_listen_is_told_with_its_last_words(self) -> None:
        self.assertIn("example does not listen:\nno memory", self.started("sys.exit('no memory')") or "")


class RowTests(Scratch):
    def test_no_line_is_longer_than_98_columns(self) -> None:
        said = row("why", "word " * 60).splitlines()
        self.assertGreater(len(said), 2)
        self.assertTrue(all(len(line) <= 98 for line in said))
        self.assertTrue(said[0].startswith("  why        word"))
        self.assertTrue(said[1].startswith("             word"))

    def test_figures_in_words(self) -> None:
        log = self.folder / "talk.log"
        log.write_text("SLUICE-GUEST kernel=6.1 early_faults=2\nSLUICE-GUEST kernel=6.1 faults=1 seconds=3 verdict=ok\n")
        figures = {
            "access_platform_offered": True, "access_platform_accepted": True, "reason": "because", "requests": 3,
            "written_bytes": 4096, "readable_bytes": 1 << 20, "reachable_bytes": 4096, "peak_reachable_bytes": 524288,
            "memory_bytes": 640 << 20, "address_path": "platform", "updates": 5, "invalidations": 4, "mappings": 1, "faults": 0,
        }
        rows = list(figure_rows(figures, Talk(log)))
        self.assertEqual(rows[0], "  decision   VIRTIO_F_ACCESS_PLATFORM was offered and accepted: addresses go through the IOMMU")
        self.assertEqual(rows[2], "  requests   3: 4 KiB read by the guest, 1 MiB written by it")
        self.assertEqual(rows[3], "  exposure   4 KiB reachable now, 512 KiB at most (0.1 %), of 640 MiB of guest memory")
        self.assertEqual(rows[4], "  mappings   5 received, 4 invalidations, 1 in force now")
        self.assertIn("0 reported by Sluice; 3 in the guest's log, before", rows[5])


class UnitTests(unittest.TestCase):
    def test_every_target_is_in_one_group_and_the_groups_are_alike(self) -> None:
        sizes = {"A": 100, "B": 60, "C": 50, "D": 10, "E": 0}
        made = units.groups(sizes, 2)
        self.assertEqual(sorted(name for group in made for name in group), sorted(sizes))
        self.assertEqual(sorted(sum(sizes[name] for name in group) for group in made), [110, 110])

    def test_there_are_no_more_groups_than_targets(self) -> None:
        self.assertEqual(units.groups({"A": 1}, 3), [["A"]])


class ThreadTests(Scratch):
    def test_a_new_target_is_sanitized_and_a_stale_name_refused(self) -> None:
        targets = [{"name": name, "type": "test"} for name in [*threads.LEFT_OUT, "NewTests"]] + [{"name": "New", "type": "regular"}]
        self.assertEqual(threads.threaded({"targets": targets}), ["NewTests"])
        self.assertIn("ArchitectureTests", self.refused(lambda: threads.threaded({"targets": targets[1:]}), 1))
