import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

from lab.places import LabError, Settings
from speed.figures import Table, ratio, result, spread
from speed.options import device_options, parse
from speed.picture import picture
from speed.samples import Counts, Sample, Turn
from speed.table import comparison, counted, number, report, table

SETTINGS = Settings.of({"SLUICE": sys.executable, "SLUICE_OPTIONS": "--log-level error"})


def turn(mode: str, target: str, round: int, kib: int, backend: int = 10, requests: int = 100) -> dict[str, Any]:
    used = Sample(40, backend, 2, 60, 1.0)
    counted = Counts(questions=requests // 2, calls=requests * 2, requests=requests)
    return Turn(mode, target, "randread:4k:32", round, used, counted, kib, 1000).json()


class OptionTests(unittest.TestCase):
    def test_what_is_measured_by_default(self) -> None:
        options = parse([], SETTINGS)
        self.assertEqual((options.rounds, len(options.patterns), options.modes), (5, 6, ["off", "strict", "lazy", "pt"]))
        self.assertEqual(options.targets("off"), ["sluice", "qsd", "qemu"])
        self.assertEqual(options.targets("lazy"), ["sluice", "qemu"])
        self.assertAlmostEqual(options.seconds, 780 / 360 - 1)

    def test_a_quick_run(self) -> None:
        options = parse(["--quick", "--rounds", "2"], SETTINGS)
        self.assertEqual((options.rounds, options.seconds, len(options.patterns)), (2, 1, 3))

    def test_with_many_disks_the_turns_become_shorter(self) -> None:
        variants = [word for name in "abc" for word in ("--variant", f"{name}::event_idx=off")]
        self.assertEqual(parse(["--rounds", "20", *variants], SETTINGS).seconds, 0.7)

    def test_a_variant_has_options_of_its_own(self) -> None:
        options = parse(["--variant", "sync:--engine sync:indirect_desc=off", "--before", sys.executable, "--peers", "none"], SETTINGS)
        self.assertEqual([disk.name for disk in options.served], ["sluice", "sync", "before"])
        self.assertEqual(options.served[1].words, ("--log-level", "error", "--engine", "sync"))
        self.assertEqual(options.served[1].device, "indirect_desc=off")
        self.assertEqual(options.served[2].words, ())
        self.assertEqual(options.peers, [])

    def test_functions_are_in_the_guests_that_can_have_them(self) -> None:
        options = parse(["--modes", "off,vfio-off,vfio-strict"], SETTINGS)
        self.assertEqual(options.targets("off"), ["sluice", "qsd", "qemu"])
        for mode in ("vfio-off", "vfio-strict"):
            self.assertEqual(options.targets(mode), ["sluice", "vfioblk", "nvme", "qemu", "qemunvme"])
        variant = parse(["--modes", "vfio-off,off", "--variant", "nvmedb:--doorbells shared:"], SETTINGS)
        self.assertIn("nvmedb", variant.targets("vfio-off"))
        self.assertNotIn("nvmedb", variant.targets("off"))
        self.assertEqual([(disk.function, disk.words[-1]) for disk in variant.served if disk.name == "nvmedb"], [("nvme", "shared")])
        self.assertEqual(parse(["--modes", "vfio-off", "--peers", "none"], SETTINGS).targets("vfio-off"), ["sluice", "vfioblk", "nvme"])

    def test_a_delay_goes_around_the_page_cache(self) -> None:
        self.assertTrue(parse(["--delay", "3"], SETTINGS).direct)

    def test_what_cannot_be_measured_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for words in (
                "--rounds 0", "--rounds x", "--seconds 0", "--seconds 0.0", "--seconds -1", "--modes none", "--patterns randread",
                "--patterns read:4:1", "--peers other", "--variant a", "--variant A::", "--variant sluice::", "--variant qsd::",
                "--before /nope", "--image-dir /nope", "--delay 0", "--delay 1.5", f"--delay 3 --image-dir {folder}", "--nope 1",
                "--rounds", "word", "--variant nvmetoolong::", "--variant a:: --variant b:: --variant c:: --variant d:: --variant e::",
            ):
                with self.subTest(words), self.assertRaises(LabError):
                    parse(words.split(), SETTINGS)

    def test_of_a_device_option_the_later_counts(self) -> None:
        self.assertEqual(device_options("a=1,b=2") | device_options("a=3"), {"a": "3", "b": "2"})
        self.assertEqual(device_options(""), {})


class FigureTests(unittest.TestCase):
    def test_ratios_are_of_the_same_round(self) -> None:
        one, other = [turn("off", "a", n, 400 * (n + 1)) for n in range(3)], [turn("off", "b", n, 400) for n in (0, 2)]
        self.assertEqual(ratio(one, other, lambda each: each["iops"]), {"median": 2, "min": 1, "max": 3})
        self.assertIsNone(ratio(one, [], lambda each: each["iops"]))
        self.assertIsNone(spread([]))

    def test_a_turn(self) -> None:
        said = turn("off", "sluice", 0, 4000)
        self.assertEqual((said["ios"], said["iops"], said["cpu_us"]), (1000, 1000, 500))
        self.assertAlmostEqual(said["foreign"], 0.08)

    def test_counts_of_an_older_sluice(self) -> None:
        self.assertEqual(Counts.of({"queues": [{"calls": 3}], "requests": 5}), Counts(calls=3, requests=5))
        self.assertEqual(Counts.of(None), Counts())

    def test_functions_are_compared_with_their_like(self) -> None:
        turns = [turn("vfio-off", "sluice", 0, 400), turn("vfio-off", "vfioblk", 0, 600), turn("vfio-off", "nvme", 0, 900),
                 turn("vfio-off", "qemu", 0, 300), turn("vfio-off", "qemunvme", 0, 300), turn("vfio-strict", "nvme", 0, 90)]
        off, strict = Table(turns, ["sluice", "vfioblk", "nvme"]).rows()
        self.assertEqual(off["variants"]["nvme"]["iops"]["median"], 2.25)
        self.assertEqual((off["vfioblk_to_qemu"]["iops"]["median"], off["nvme_to_qemunvme"]["iops"]["median"]), (2, 3))
        self.assertEqual(strict["to_off"]["nvme"]["median"], 0.1)

    def test_rows_have_what_there_is(self) -> None:
        turns = [turn("off", "sluice", 0, 800), turn("off", "qsd", 0, 400), turn("strict", "sluice", 0, 400)]
        off, strict = Table(turns, ["sluice"]).rows()
        self.assertEqual(off["to_qsd"]["iops"]["median"], 2)
        self.assertIsNone(off["to_off"])
        self.assertEqual(strict["to_off"]["sluice"]["median"], 0.5)
        self.assertIsNone(strict["to_off"]["qemu"])
        self.assertEqual(strict["each"]["sluice"], {"questions": 0.5, "invalidations": 0, "calls": 2, "waits": 0, "maps": 0, "unmaps": 0})
        self.assertEqual(list(off["iops"]), ["sluice", "qsd"])


class TableTests(unittest.TestCase):
    setting = {
        "storage": {"what": "tmpfs", "delay_ms": 0}, "device": "", "seconds": 1,
        "disks": [{"name": "sluice", "program": "p", "options": "", "device": ""}],
    }

    def result(self, *turns: dict[str, Any]) -> dict[str, Any]:
        return result(self.setting, list(turns), [{"mode": "off", "target": "qsd", "pattern": "x"}], 2)

    def test_columns_are_there_where_they_have_something_to_say(self) -> None:
        alone = self.result(turn("off", "sluice", 0, 800))
        self.assertEqual(comparison(alone)[0], ["mode", "pattern", "depth", "IOPS", "CPU µs"])
        both = self.result(turn("off", "sluice", 0, 800), turn("off", "qsd", 0, 400), turn("strict", "sluice", 0, 400))
        self.assertEqual(comparison(both)[0][5:], ["IOPS/qsd", "CPU/qsd", "IOPS/off"])
        self.assertEqual(comparison(both)[2][5:], ["-", "-", "0.50 (0.50..0.50)"])
        self.assertEqual(counted(both)[1], ["off", "randread 4k", "32", "sluice", "0.500", "0.000", "0.000", "2.000"])

    def test_maps_are_counted_where_there_are_any(self) -> None:
        mapped = turn("vfio-strict", "nvme", 0, 400, requests=0) | {"maps": 300, "unmaps": 200}
        self.setting["disks"].append({"name": "nvme", "program": "p", "options": "", "device": ""})
        self.addCleanup(self.setting["disks"].pop)
        self.assertEqual(counted(self.result(mapped))[0][-2:], ["maps", "unmaps"])
        self.assertEqual(counted(self.result(mapped))[1][-2:], ["3.000", "2.000"])

    def test_what_is_said_below(self) -> None:
        said = report(self.result(turn("off", "sluice", 0, 800)))
        self.assertIn("Images: tmpfs. A turn: 1 s.", said)
        self.assertIn("Turns that did not end, for any reason: off qsd x.", said)

    def test_a_turn_without_a_figure_is_no_result(self) -> None:
        broken = turn("off", "sluice", 0, 800) | {"kib": 0}
        with self.assertRaises(ValueError):
            self.result(broken)

    def test_columns_are_as_wide_as_they_need_to_be(self) -> None:
        self.assertEqual(table([["a", "b", "c"], ["aa", "b", "ccc"]]), ["a   b    c", "aa  b  ccc"])

    def test_numbers(self) -> None:
        self.assertEqual([number(None, 2), number(0.005, 2), number(12.5, 0), number(0, 3)], ["-", "0.01", "13", "0.000"])

    def test_a_picture_has_a_bar_for_each_disk(self) -> None:
        drawn = picture(self.result(turn("off", "sluice", 0, 800), turn("off", "qsd", 0, 400)))
        self.assertEqual(drawn.count("<rect"), 1 + 2 + 2)
        self.assertIn('width="470" height="11" fill="#2f6f9f"', drawn)
        self.assertIn('width="235" height="11" fill="#8a8a8a"', drawn)
