"""Verdicts on what a back-end says of itself."""

import unittest
from typing import Any

from lab.figures import amount, sample_wrong, wrong_figures

GOOD: dict[str, Any] = {
    "access_platform_offered": True, "access_platform_accepted": True, "address_path": "platform", "faults": 0, "requests": 10, "completions": 10,
    "failed_sessions": 0, "lost_pages": 0, "reachable_bytes": 4096, "peak_reachable_bytes": 8192, "memory_bytes": 1 << 20, "updates": 3,
}
PHYSICAL = {**GOOD, "access_platform_accepted": False, "address_path": "physical", "reachable_bytes": 1 << 20, "peak_reachable_bytes": 1 << 20, "updates": 0}


class Figures(unittest.TestCase):
    def test_what_is_as_it_must_be_is_no_trouble(self) -> None:
        self.assertIsNone(wrong_figures(GOOD, "strict"))
        self.assertIsNone(wrong_figures(PHYSICAL, "off"))
        self.assertIsNone(wrong_figures({**PHYSICAL, "access_platform_offered": False}, "off", withheld=True))

    def test_every_other_figure_is_told(self) -> None:
        for change, reason in (
            ({"access_platform_offered": False}, "ACCESS_PLATFORM was not offered"),
            ({"access_platform_accepted": False}, "ACCESS_PLATFORM accepted: false, expected true"),
            ({"address_path": "physical"}, "the address path is physical, expected platform"),
            ({"faults": 2}, "2 faults"), ({"requests": 0}, "no request was counted"), ({"completions": 0}, "no request was counted"),
            ({"failed_sessions": 1}, "1 connections failed"), ({"lost_pages": 1}, "1 pages lost"),
            ({"peak_reachable_bytes": 2 << 20}, "more is reachable than there is"), ({"updates": 0}, "translated without a single mapping"),
        ):
            with self.subTest(reason):
                self.assertEqual(wrong_figures({**GOOD, **change}, "lazy"), reason)
        self.assertEqual(wrong_figures({**PHYSICAL, "reachable_bytes": 5}, "off"), "without an IOMMU all memory is reachable, not 5")
        self.assertEqual(wrong_figures(GOOD, "strict", withheld=True), "ACCESS_PLATFORM was offered")

    def test_an_answer_that_lacks_something_cannot_be_read(self) -> None:
        self.assertEqual(wrong_figures({"faults": 0}, "off"), "explain's answer cannot be read")
        self.assertEqual(wrong_figures(None, "off"), "explain's answer cannot be read")

    def test_a_sample_at_any_time(self) -> None:
        self.assertIsNone(sample_wrong(GOOD, "disk", "strict"))
        self.assertEqual(sample_wrong(GOOD, "disk", "off"), "the address path of disk is platform")
        self.assertEqual(sample_wrong(None, "disk", "off"), "sluice explain gave no answer")

    def test_amounts(self) -> None:
        self.assertEqual([amount(n) for n in (0, 17, 4096, 1536, 5 << 30)], ["0 bytes", "17 bytes", "4 KiB", "1.5 KiB", "5 GiB"])
