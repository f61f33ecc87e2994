"""Tables and picture from rows."""

import tempfile
import unittest
from pathlib import Path

from lab import check_table
from lab.exposure import exposure
from lab.job import Row, append_row, read_rows
from lab.jobs.systems import DeviceRow
from lab.tables import moved_terminal, page, percent, system_cells, systems_terminal
from lab.whole import silent

KNOWN = Path(__file__).with_name("known")
ROW = {"system": "strict", "title": "x86-64, VT-d strict", "front_end": "QEMU 7.2", "device": "blk", "bit": "on", "ring": "split", "path": "platform",
       "negotiated": [2, 33], "requests": 12, "bytes_verified": 16 << 20, "faults": 0, "exposure_percent": 0.1234, "seconds": 12.9, "backend": "sluice",
       "verdict": "ok", "reason": ""}
LOST = {**ROW, "system": "dpdk", "bit": "", "ring": "", "path": "", "negotiated": [], "requests": None, "bytes_verified": None, "faults": None,
        "exposure_percent": None, "verdict": "not run", "reason": "not there"}
MOVED = {"job": "plug-off", "title": "hot plug", "iommu": "off", "done": "10 times", "acknowledged": 7, "looks": 0, "faults": 0, "wrong": 0, "seconds": 9.5,
         "backend": "sluice", "verdict": "ok", "reason": ""}


def result(check: str, verdict: str, number: int = 1, peer: str = "qsd7") -> dict[str, object]:
    return {"check": check, "rule": "§1", "says": "It holds.", "verdict": verdict, "evidence": "seen", "peer": peer, "title": "QSD", "version": "7.2.1",
            "type": "blk", "try": number}


class Tables(unittest.TestCase):
    def test_cells(self) -> None:
        self.assertEqual(system_cells(ROW)[5:], ["2 33", "platform", "12", "16 MiB", "0", "0.123 %", "12", "ok"])
        self.assertEqual(system_cells(LOST)[3:12], ["–"] * 8 + ["12"])
        self.assertEqual([percent(value) for value in (None, 0, 9.99996, 10.5, 100)], ["", "0 %", "10 %", "11 %", "100 %"])

    def test_a_terminal_has_columns_as_wide_as_they_need_to_be(self) -> None:
        head, first, second, why = systems_terminal([ROW, LOST]).splitlines()
        self.assertEqual(head.index("path"), first.index("platform"))
        self.assertEqual(head.index("verdict"), first.rindex("ok"))
        self.assertNotIn("2 33", first)
        self.assertTrue(second.endswith("not run"))
        self.assertEqual(why, "x86-64, VT-d strict, QEMU 7.2, blk: not run: not there")
        self.assertIn("VT-d off: failed: it broke", moved_terminal([{**MOVED, "verdict": "failed", "reason": "it broke"}]))

    def test_the_page(self) -> None:
        text = page([ROW, LOST], [MOVED], picture=False)
        self.assertIn("\n1 rows ok, 0 failed, 1 not run.\n\n## What failed, cannot work or did not run\n* x86-64, VT-d strict, QEMU 7.2, blk: not run: not there\n", text)
        self.assertIn("| hot plug | off | 10 times | 7 | 0 | 0 | 0 | 9 | ok |\n\n1 rows ok, 0 failed, 0 not run.\n", text)
        known = page([ROW, {**LOST, "verdict": "does not work, as expected"}], [MOVED], picture=False)
        self.assertIn("\n1 rows ok, 0 failed, 1 as expected, 0 not run.\n", known)
        self.assertNotIn("exposure.svg", text)
        self.assertIn("exposure.svg", page([ROW], [MOVED], picture=True))
        self.assertIn("failed: the job reported nothing", page([ROW], [silent("plug-off")], picture=False))

    def test_the_picture_has_a_curve_for_each_system_with_the_bit_on(self) -> None:
        sample = {"system": "strict", "title": "VT-d strict", "bit": "on", "at": 1000, "connected": True, "reachable_bytes": 1024, "memory_bytes": 1 << 20}
        picture = exposure([sample, {**sample, "at": 2000, "reachable_bytes": 2048}, {**sample, "system": "off", "bit": "off"},
                            {**sample, "system": "pt", "connected": False}])
        self.assertEqual(picture.count("<path"), 1)
        self.assertIn("at most 0.195 %", picture)

    def test_rows_are_lines(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "systems.jsonl")
            append_row(file, {"title": "§ – é"})
            append_row(file, {"title": "2"})
            self.assertEqual(read_rows(file), [{"title": "§ – é"}, {"title": "2"}])

    def test_a_row_takes_its_figures_from_the_back_end(self) -> None:
        row = DeviceRow("strict", "", "")
        row.take({"address_path": None, "completions": 4, "faults": 1, "memory_bytes": 3, "peak_reachable_bytes": 1})
        self.assertEqual((row.path, row.requests, row.faults, row.exposure_percent), ("", 4, 1, 33.333))


class KnownDocuments(unittest.TestCase):
    """What the folder `known` holds was made, from the same rows, by the program before this one."""

    def test_page_picture_and_table_are_made_byte_for_byte(self) -> None:
        def rows(name: str) -> list[Row]:
            return read_rows(KNOWN / f"{name}.jsonl")
        self.assertEqual(page(rows("systems"), rows("events"), picture=True), (KNOWN / "lab.md").read_text())
        self.assertEqual(exposure(rows("samples")), (KNOWN / "exposure.svg").read_text())
        with tempfile.TemporaryDirectory() as folder:
            page_file = Path(folder, "check.md")
            page_file.write_text(f"head\n{check_table.BEGIN}\n{check_table.END}\ntail\n")
            check_table.write(rows("check"), page_file)
            self.assertEqual(page_file.read_text(), (KNOWN / "check.md").read_text())


class CheckTable(unittest.TestCase):
    def test_a_fault_is_what_was_seen_twice(self) -> None:
        for verdicts, text in ((["kept"], "kept"), (["not offered"], "–"), (["broken", "kept", "kept"], "kept*"), (["broken", "broken", "kept"], "**broken**"),
                               (["broken", "wedged", "wedged"], "**wedged**"), (["broken", "crashed", "kept"], "**crashed**"), ([], "")):
            self.assertEqual(check_table.cell([result("a", verdict, number) for number, verdict in enumerate(verdicts, 1)]), text)

    def test_the_page_keeps_what_is_around_its_marks(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            page_file = Path(folder, "check.md")
            page_file.write_text(f"before\n{check_table.BEGIN}\nTHE FORMER\n{check_table.END}\nafter\n")
            rows: list[Row] = [result("a", "broken"), result("b", "kept"), result("a", "broken", 2), result("a", "broken", 3),
                    {"peer": "vsock", "title": "vsock", "version": "", "absent": "no root"}]
            check_table.write(rows, page_file)
            text = page_file.read_text()
        self.assertTrue(text.startswith(f"before\n{check_table.BEGIN}\nChecks in which"))
        self.assertTrue(text.endswith(f"</details>\n{check_table.END}\nafter\n"))
        self.assertIn("| §1 | `a` | **broken** |\n| | kept | 1 |\n| | broken | 1 |", text)
        self.assertIn("* vsock (`vsock`) could not be checked: no root", text)
        self.assertNotIn("THE FORMER", text)
