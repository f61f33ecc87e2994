"""Runs jobs, each in a process and a session of its own, and counts what they report."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalogue import Entry
from .initramfs import initramfs
from .job import FAILED, OK, SKIPPED, append_row, line_of, read_rows, show_logs
from .places import TREE, LabError, Settings
from .processes import kill_session, run

USUAL_TURNS = 10


@dataclass
class Running:
    """A job at work."""

    entry: Entry
    process: subprocess.Popen[bytes]
    ends_at: float                   # when it is given up


class Schedule:
    """The jobs of one run, in a folder of their logs. Their results are files of JSON lines in another."""

    def __init__(self, work: Path, results: Path, settings: Settings) -> None:
        self.work, self.results, self.settings = work, results, settings
        self.running: list[Running] = []
        # every boot has its own limit; this one is for a job that hangs with none
        self.limit: float = (settings.limit or 240) * (10 + (settings.turns or USUAL_TURNS))

    def run(self, entries: Sequence[Entry]) -> None:
        """Runs them all. An interrupt leaves nothing of them behind."""
        waiting = list(entries)
        try:
            while waiting or self.running:
                while waiting and self._may_start(waiting[0]):
                    self._start(waiting.pop(0))
                time.sleep(0.05)
                for job in [job for job in self.running if job.process.poll() is not None or time.monotonic() > job.ends_at]:
                    self._reap(job)
        finally:
            for job in self.running:
                kill_session(job.process.pid)
                job.process.wait()

    def _may_start(self, entry: Entry) -> bool:
        if entry.alone or any(job.entry.alone for job in self.running):
            return not self.running
        return len(self.running) < self.settings.jobs

    def _start(self, entry: Entry) -> None:
        folder = self.work / entry.name
        folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(self.command(entry, folder), stdin=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": str(TREE / "Lab")})
        self.running.append(Running(entry, process, time.monotonic() + self.limit))

    def command(self, entry: Entry, folder: Path) -> list[str]:
        """What a job's process is."""
        return [sys.executable, "-m", "lab", "job", entry.name, str(folder), str(self.results)]

    def _reap(self, job: Running) -> None:
        """A job that ended badly has failed even if it reported a success, and so has one that reported nothing."""
        status = job.process.poll()
        # what it left behind goes with it
        kill_session(job.process.pid)
        job.process.wait()
        self.running.remove(job)
        name = job.entry.name
        if status is None:
            self._failed(name, f"no end within {self.limit:.0f} s")
        elif status:
            self._failed(name, f"the job ended with status {status if status > 0 else 128 - status}")
        elif not any(row["job"] == name for row in self.rows()):
            self._failed(name, "the job reported nothing")

    def _failed(self, name: str, reason: str) -> None:
        """The row of a job that did not get to write its own."""
        row = {"job": name, "verdict": FAILED, "name": name, "reason": reason, "seconds": 0.0}
        append_row(self.results / "results.jsonl", row)
        print(line_of(row), flush=True)
        show_logs(self.work / name)

    def rows(self) -> list[dict[str, object]]:
        """What was reported so far."""
        return read_rows(self.results / "results.jsonl")

    def sum_up(self) -> bool:
        """Prints what was left out, once more and together, for it must not pass for what was tested; then the sum. Says whether all is
        well."""
        rows = self.rows()
        for row in rows:
            if row["verdict"] == SKIPPED:
                print(f"SKIPPED guests {row['name']}{': ' + str(row['reason']) if row['reason'] else ''}")
        count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in (OK, FAILED, SKIPPED)}
        print(f"{count[OK]} passed, {count[FAILED]} failed, {count[SKIPPED]} skipped", flush=True)
        return count[OK] > 0 and not count[FAILED]


def install(groups: Sequence[str]) -> None:
    """Installs what is missing of some groups of Scripts/install."""
    if run([TREE / "Scripts/install", *groups], 1800):
        raise LabError("what is needed is not installed")


def build(settings: Settings) -> None:
    """Builds the program under test, unless the caller named one."""
    if settings.backend == "sluice" and not settings.built:
        if run(["swift", "build", "-c", "release", "--product", "sluice"], 3600, stdout=sys.stderr, cwd=TREE):
            raise LabError("the release build failed")


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder, which goes afterwards unless there is a file `kept` in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"sluice-{name}."))
    try:
        yield folder
    finally:
        if (folder / "kept").exists():
            print(f"logs: {folder}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def run_jobs(entries: Sequence[Entry], settings: Settings, results: Path | None = None) -> bool:
    """Installs and builds what the jobs need, runs them, sums up. The results are kept where the caller says, else they go with the logs."""
    install(["build", "guest", *sorted({group for entry in entries for group in entry.needs})])
    build(settings)
    with scratch("guests") as work:
        # what two jobs would both prepare is prepared once, before the clock runs
        for extra in ("", "fio"):
            initramfs("6.1", extra)
        results = results or work / "results"
        results.mkdir(exist_ok=True)
        schedule = Schedule(work, results, settings)
        try:
            schedule.run(entries)
        finally:
            if settings.keep or any(row["verdict"] == FAILED for row in schedule.rows()):
                (work / "kept").touch()
        return schedule.sum_up()
