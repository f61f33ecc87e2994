import unittest

from verbs.summary import Count, count, left_out, reasons

SWIFT = """\
◇ Test run started.
✔ Test "One thing" passed after 0.001 seconds.
✘ Test "Another, which failed after 3 seconds" recorded an issue at ATests.swift:3:5: Expectation failed
✘ Test "Another, which failed after 3 seconds" failed after 0.002 seconds with 1 issue.
➜ Test "A third" skipped: "there is no kernel"
➜ Test "A fourth" skipped.
✘ Test run with 4 tests in 1 suite failed after 0.003 seconds with 1 issue.
"""


class CountTests(unittest.TestCase):
    def test_the_last_line_of_a_verb_counts(self) -> None:
        self.assertEqual(count("1 passed, 0 failed\nmore\n7 passed, 2 failed, 3 skipped\n", 1), Count(7, 2, 3))
        self.assertEqual(count("7 passed, 0 failed\n", 0), Count(7))
        self.assertEqual(count("it said 7 passed, 0 failed\n", 0), Count(1))

    def test_swift_testing_counts_without_the_run_itself(self) -> None:
        self.assertEqual(count(SWIFT, 1), Count(1, 1, 2))

    def test_several_runs_are_added(self) -> None:
        run = "✔ Test run with {} tests in 2 suites passed after 1 seconds.\n"
        self.assertEqual(count(run.format(10) + run.format(5) + "✔ Test run with 1 test passed\n", 0), Count(16))

    def test_unittest_counts(self) -> None:
        self.assertEqual(count("...\nRan 12 tests in 0.1s\n\nOK (skipped=2)\n", 0), Count(10, 0, 2))
        self.assertEqual(count("Ran 5 tests in 0.1s\n\nFAILED (failures=1, errors=1)\n", 1), Count(3, 2))

    def test_any_other_step_is_one_test(self) -> None:
        self.assertEqual(count("built\n", 0), Count(1))
        self.assertEqual(count("broken\n", 2), Count(0, 1))

    def test_a_step_that_ended_badly_has_failed_whatever_it_printed(self) -> None:
        self.assertEqual(count("3 passed, 0 failed\n", 124), Count(3, 1))
        self.assertEqual(count("✔ Test run with 9 tests passed\n", 137), Count(9, 1))


class ReasonTests(unittest.TestCase):
    def test_lines_that_say_what_failed(self) -> None:
        said = reasons("units", SWIFT)
        self.assertEqual(len(said), 2)
        self.assertTrue(all(line.startswith("FAILED units: ✘ Test") for line in said))
        self.assertEqual(reasons("fuzz", "fuzz: A ok\nfuzz: B FAILED, see b.log\n"), ["FAILED fuzz: fuzz: B FAILED, see b.log"])
        self.assertEqual(reasons("x", "a\nx: stopped after 5 s\n"), ["FAILED x: x: stopped after 5 s"])

    def test_without_any_the_last_lines(self) -> None:
        self.assertEqual(reasons("x", "\n".join(map(str, range(40)))), [f"FAILED x: {n}" for n in range(28, 40)])

    def test_what_was_left_out(self) -> None:
        self.assertEqual(left_out(SWIFT + "SKIPPED guests uml\n"), ['SKIPPED Test "A third" skipped: "there is no kernel"', "SKIPPED guests uml"])
