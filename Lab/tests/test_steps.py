import contextlib
import io
import signal
import tempfile
import time
import unittest
from pathlib import Path

from verbs.steps import Runner, Step
from verbs.summary import Count
from verbs.everything import steps, wanted


def shell(name: str, words: str, after: tuple[str, ...] = (), limit: float = 20, prepares: bool = False) -> Step:
    return Step(name, limit, ["sh", "-c", words], after, prepares)


class Said(io.TextIOWrapper):
    """Takes what is written as bytes, too, and keeps all of it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def getvalue(self) -> str:
        said = self.buffer
        assert isinstance(said, io.BytesIO)
        return said.getvalue().decode()


class RunnerTests(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def ran(self, *listed: Step) -> tuple[Runner, str]:
        runner = Runner(self.folder, list(listed))
        said = Said()
        with contextlib.redirect_stdout(said):
            runner.run()
        return runner, said.getvalue()

    def test_counts_what_each_step_says(self) -> None:
        runner, said = self.ran(shell("a", "echo 3 passed, 1 failed; exit 1"), shell("b", "true"))
        self.assertEqual(runner.total, Count(4, 1))
        self.assertEqual(runner.broken, ["a"])
        self.assertRegex(said, r"(?m)^--- a: 3 passed, 1 failed, 0 skipped, \d+ s$")
        self.assertRegex(said, r"(?m)^--- b: 1 passed, 0 failed, 0 skipped, \d+ s$")

    def test_a_step_begins_when_those_before_it_have_ended(self) -> None:
        runner, _ = self.ran(
            shell("a", f"sleep 0.3; touch {self.folder}/a"), shell("b", f"test -e {self.folder}/a", after=("a",)), shell("c", "true")
        )
        self.assertEqual(runner.total, Count(3))

    def test_two_run_beside_each_other(self) -> None:
        meet = "touch {0}/{1}; until [ -e {0}/{2} ]; do sleep 0.02; done"
        first, second = meet.format(self.folder, "a", "b"), meet.format(self.folder, "b", "a")
        runner, _ = self.ran(shell("one", first), shell("two", second))
        self.assertEqual(runner.total, Count(2))

    def test_one_that_looks_at_the_clock_runs_beside_nothing(self) -> None:
        alone = f"test ! -e {self.folder}/busy"
        busy = f"touch {self.folder}/busy; sleep 0.3; rm {self.folder}/busy"
        clock = Step("clock", 20, ["sh", "-c", alone], lanes=2)
        runner, _ = self.ran(shell("a", busy), clock, shell("b", busy), shell("c", "true"))
        self.assertEqual(runner.total, Count(4))

    def test_a_step_that_takes_too_long_is_ended_with_all_it_started(self) -> None:
        began = time.monotonic()
        runner, said = self.ran(shell("a", "sleep 60 & sleep 60", limit=0.2), shell("b", "true"))
        self.assertLess(time.monotonic() - began, 50)
        self.assertEqual(runner.total, Count(1, 1))
        self.assertIn("a: stopped after 0.2 s\n", said)

    def test_interrupted_it_ends_what_runs(self) -> None:
        runner = Runner(self.folder, [shell("b", "sleep 60"), shell("a", "echo begun; kill -ALRM $PPID; sleep 60")])
        began = time.monotonic()
        with contextlib.redirect_stdout(Said()) as said, self.assertRaises(KeyboardInterrupt):
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            runner.run()
        self.assertLess(time.monotonic() - began, 50)
        self.assertIn("UNFINISHED a: begun\n", said.getvalue())

    def test_a_step_alone_is_shown_as_it_comes(self) -> None:
        _, said = self.ran(shell("a", "echo one; echo two >&2"))
        self.assertTrue(said.startswith("--- a\none\ntwo\n--- a: 1 passed"), said)

    def test_what_prepares_counts_where_it_fails_alone(self) -> None:
        runner, _ = self.ran(shell("a", "true", prepares=True), shell("b", "true", after=("a",)))
        self.assertEqual(runner.total, Count(1))
        runner, _ = self.ran(shell("a", "exit 3", prepares=True), shell("b", "true", after=("a",)))
        self.assertEqual(runner.total, Count(1, 1))


class ListTests(unittest.TestCase):
    def test_every_step_waits_for_steps_before_it(self) -> None:
        names: list[str] = []
        for step in steps():
            self.assertLessEqual(set(step.after), set(names), step.name)
            names.append(step.name)
        self.assertEqual(len(names), len(set(names)))

    def test_a_step_brings_what_prepares_it(self) -> None:
        known = [shell("build", "", prepares=True), shell("units", "", ("build",)), shell("guests", "", ("units",))]
        self.assertEqual([step.name for step in wanted(["units"], known)], ["build", "units"])
        self.assertEqual([step.name for step in wanted(["guests"], known)], ["guests"])
        self.assertEqual(wanted([], known), known)

    def test_an_unknown_step_is_refused(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit) as end:
            wanted(["nope"], steps())
        self.assertEqual(end.exception.code, 2)
        self.assertIn("no step 'nope'; there are:", said.getvalue())
