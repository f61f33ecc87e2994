"""Jobs that die, hang or say nothing; what runs side by side; and that nothing is left behind."""

import contextlib
import io
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path

from lab.catalogue import ADVERSE, JOBS, USUAL, Entry, entry
from lab.job import Job
from lab.places import LabError, Settings, Skipped, Wrong
from lab.processes import KILLED, Processes, run, session_members, until
from lab.schedule import Schedule

LAB = Path(__file__).resolve().parents[1]
REPORT = """echo '{"job":"%s","verdict":"%s","name":"%s","reason":"","seconds":1}' >>%s/results.jsonl; """


def lives(process: int) -> bool:
    """Is there such a process, that is not just waiting to be reaped?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Scripted(Schedule):
    """Jobs that are lines of shell."""

    scripts: dict[str, str] = {}

    def command(self, entry: Entry, folder: Path) -> list[str]:
        return ["sh", "-c", self.scripts[entry.name]]


class Folders(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.settings = Settings.of({"JOBS": "2"})

    def scheduled(self, scripts: dict[str, str], alone: tuple[str, ...] = (), limit: float = 20) -> tuple[dict[str, str], str, bool]:
        """What came of each job, what was printed, and whether all is well."""
        schedule = Scripted(self.folder, self.folder, self.settings)
        schedule.scripts, schedule.limit = scripts, limit
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            schedule.run([Entry(name, Job, alone=name in alone) for name in scripts])
            well = schedule.sum_up()
        return {str(row["name"]): f"{row['verdict']} {row['reason']}".strip() for row in schedule.rows()}, printed.getvalue(), well

    def report(self, name: str, verdict: str = "ok") -> str:
        return REPORT % (name, verdict, name, self.folder)


class Schedules(Folders):
    def test_every_way_to_end_is_counted(self) -> None:
        came, printed, well = self.scheduled({
            "good": self.report("good"), "left": self.report("left", "skipped"), "silent": "true", "dead": self.report("dead-half") + "exit 3",
            "killed": "kill -9 $$",
        })
        self.assertEqual(came, {"good": "ok", "left": "skipped", "silent": "failed the job reported nothing", "dead-half": "ok",
                                "dead": "failed the job ended with status 3", "killed": "failed the job ended with status 137"})
        self.assertIn("SKIPPED guests left\n2 passed, 3 failed, 1 skipped\n", printed)
        self.assertFalse(well)

    def test_a_job_that_hangs_has_failed_and_is_gone_with_its_children(self) -> None:
        child = self.folder / "child"
        came, _, _ = self.scheduled({"hangs": f"sleep 60 & echo $! >{child}; (trap '' TERM; sleep 61) & wait"}, limit=2)
        self.assertEqual(came, {"hangs": "failed no end within 2 s"})
        self.assertFalse(lives(int(child.read_text())))

    def test_what_a_job_leaves_behind_is_ended(self) -> None:
        child = self.folder / "child"
        _, _, well = self.scheduled({"leaves": self.report("leaves") + f"sleep 60 & echo $! >{child}"})
        self.assertTrue(well)
        self.assertFalse(lives(int(child.read_text())))

    def test_nothing_is_no_success(self) -> None:
        self.assertFalse(self.scheduled({"left": self.report("left", "skipped")})[2])

    def test_two_run_side_by_side_and_some_jobs_alone(self) -> None:
        # each says that it is there, waits for its companion, and notes which jobs are there
        def busy(name: str, companion: str) -> str:
            here, seen = self.folder / "here", self.folder / "seen"
            return (f"mkdir {here}/{name} {seen}/{name}; n=0; while [ ! -e {seen}/{companion} ] && [ $((n += 1)) -lt 200 ]; do sleep 0.05; done; "
                    f"ls {here} >{self.folder}/{name}.beside; sleep 0.2; rmdir {here}/{name}; " + self.report(name))
        for part in ("here", "seen"):
            (self.folder / part).mkdir()
        companions = {"a": "b", "b": "a", "alone": "alone", "c": "c"}
        self.scheduled({name: busy(name, companion) for name, companion in companions.items()}, alone=("alone",))
        beside = {name: (self.folder / f"{name}.beside").read_text().split() for name in companions}
        self.assertIn(["a", "b"], (beside["a"], beside["b"]))
        self.assertEqual((beside["alone"], beside["c"]), (["alone"], ["c"]))

    def test_an_interrupt_leaves_nothing_behind(self) -> None:
        program = textwrap.dedent(f"""
            import sys; sys.path[:0] = [{str(LAB)!r}]
            from pathlib import Path
            from lab.processes import end_on_signals
            from tests.test_schedule import Entry, Job, Scripted, Settings
            end_on_signals()
            one = Scripted(Path({str(self.folder)!r}), Path({str(self.folder)!r}), Settings.of({{}}))
            one.scripts = {{"long": "sleep 60 & echo $! >{self.folder}/child.new; mv {self.folder}/child.new {self.folder}/child; wait"}}
            one.run([Entry("long", Job)])
        """)
        for which in (signal.SIGINT, signal.SIGTERM):
            (self.folder / "child").unlink(missing_ok=True)
            runner = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
            self.assertTrue(until(60, (self.folder / "child").exists))
            runner.send_signal(which)
            self.assertEqual(runner.wait(60), 130)
            self.assertFalse(lives(int((self.folder / "child").read_text())))
            self.assertEqual(session_members(runner.pid), [])


class Jobs(Folders):
    def job(self, work: object) -> tuple[int, list[dict[str, object]]]:
        class Some(Job):
            def work(self) -> None:
                work(self)      # type: ignore[operator]
        with Processes() as processes, contextlib.redirect_stdout(io.StringIO()):
            some = Some("some-strict", self.folder, self.folder, self.settings, processes)
            return some.run(), Scripted(self.folder, self.folder, self.settings).rows()

    def test_what_a_job_raises_is_its_row(self) -> None:
        def wrong(_: Job) -> None:
            raise Wrong("other bytes")
        status, rows = self.job(wrong)
        self.assertEqual((status, rows[0]["verdict"], rows[0]["name"], rows[0]["reason"]), (0, "failed", "some-strict", "other bytes"))

    def test_a_mistake_in_a_job_is_told_where_the_logs_are(self) -> None:
        status, rows = self.job(lambda _: 1 / 0)
        self.assertEqual((status, rows), (1, []))
        self.assertIn("ZeroDivisionError", (self.folder / "died.log").read_text())

    def test_attempts(self) -> None:
        def skip() -> str:
            raise Skipped("not here")
        def attempts(job: Job) -> None:
            job.attempt("one", lambda: "12 done")
            job.attempt("two", skip)
        _, rows = self.job(attempts)
        self.assertEqual([(row["verdict"], row["reason"]) for row in rows], [("ok", "12 done"), ("skipped", "not here")])

    def test_a_back_end_that_is_not_ours_takes_no_part_in_some(self) -> None:
        def able(backend: str, what: str) -> bool:
            with Processes() as processes:
                return Job("x", self.folder, self.folder, Settings.of({"BACKEND": backend}), processes).able(what)
        self.assertEqual([able("qsd", what) for what in ("off", "strict", "kill", "uml")], [True, False, False, True])
        self.assertEqual([able("qemu", what) for what in ("off", "strict", "kill", "uml")], [True, True, False, False])


class Catalogue(unittest.TestCase):
    def test_every_job_that_is_named_exists(self) -> None:
        for name in [*USUAL, *ADVERSE]:
            self.assertEqual(entry(name).name, name)
        with self.assertRaisesRegex(LabError, "no job 'matrix'"):
            entry("matrix")

    def test_groups_that_are_needed_are_groups_that_can_be_installed(self) -> None:
        install = LAB.parent / "Scripts/install"
        known = subprocess.run([install, "no-such-group"], capture_output=True, text=True).stderr
        for job in JOBS.values():
            for group in job.needs:
                self.assertIn(group, known.split())

    def test_the_variables_are_read(self) -> None:
        settings = Settings.of({"BACKEND": "qsd", "SLUICE_OPTIONS": "--lock  running", "LIMIT": "10", "KEEP": "yes"})
        self.assertEqual((settings.backend, settings.options, settings.limit, settings.jobs, settings.keep), ("qsd", ("--lock", "running"), 10, 2, True))
        for wrong in ({"BACKEND": "vax"}, {"LIMIT": "soon"}):
            with self.assertRaises(LabError):
                Settings.of(wrong)


class Limits(unittest.TestCase):
    def test_a_command_that_takes_too_long_is_killed_with_its_children(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            self.assertEqual(run(["sh", "-c", f"sleep 60 & echo $! >{folder}/child; wait"], 2), KILLED)
            self.assertLess(time.monotonic() - began, 30)
            child = int(Path(folder, "child").read_text())
            self.assertTrue(until(60, lambda: not lives(child)))

    def test_an_owner_ends_what_it_started(self) -> None:
        with Processes() as processes:
            child = processes.start(["sh", "-c", "trap '' TERM; sleep 60"])
        self.assertFalse(lives(child.pid))

    def test_a_process_has_a_limit_of_its_own(self) -> None:
        with Processes() as processes:
            self.assertEqual(processes.reap(processes.start(["sleep", "60"], limit=0.2)), KILLED)

    def test_a_polite_end_is_tried_first(self) -> None:
        with Processes() as processes, tempfile.TemporaryDirectory() as folder:
            child = processes.start(["sh", "-c", f"trap 'exit 0' TERM; echo >{folder}/ready; while :; do sleep 0.05; done"])
            self.assertTrue(until(60, Path(folder, "ready").exists))
            self.assertEqual(processes.stop(child), 0)
