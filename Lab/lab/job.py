"""What every job of `Scripts/guests` is: it has a folder, starts processes, and reports rows."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .backend import BackEnds
from .guest import Guest, Pause
from .places import LabError, Settings, Skipped, Wrong
from .processes import Processes
from .qemu import GuestMachine

Row = dict[str, Any]
FAILED, SKIPPED, OK = "failed", "skipped", "ok"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file that several jobs write to."""
    with open(file, "a") as out:
        out.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n")


def read_rows(file: Path) -> list[Row]:
    """The rows of such a file; none if there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()] if file.exists() else []


def line_of(row: Row) -> str:
    """A job's row for the screen."""
    return f"{row['verdict']:<7} guests {row['name']} {row['seconds']:.1f} s{': ' + row['reason'] if row['reason'] else ''}"


def show_logs(folder: Path, lines: int = 14) -> None:
    """Prints the last lines of every log of a run that failed."""
    for log in sorted(folder.glob("*.log")):
        text = log.read_text(errors="replace").splitlines()
        if text:
            print("\n".join([f"--- last lines of {log}", *(line[:300] for line in text[-lines:])]), flush=True)


class Job:
    """A job. Its rows are lines in `results.jsonl` of the folder of results, where some kinds keep more files."""

    def __init__(self, name: str, folder: Path, results: Path, settings: Settings, processes: Processes) -> None:
        self.name, self.folder, self.results, self.settings, self.processes = name, folder, results, settings, processes
        self.argument = name.partition("-")[2]      # what comes after the first dash of the name
        self.started = time.monotonic()
        self.limit = settings.limit or 240
        self._shown = False

    def work(self) -> None:
        """Does the job and reports at least one row."""
        raise NotImplementedError

    def run(self) -> int:
        """Does the job; returns the status of its process. What ended it early, if anything did, is in died.log."""
        try:
            self.work()
            return 0
        except (Wrong, LabError) as error:
            self.row(FAILED, self.name, str(error))
            return 0
        except Exception:
            (self.folder / "died.log").write_text(traceback.format_exc())
            return 1

    def row(self, verdict: str, name: str, reason: str = "") -> None:
        """Reports one thing that was tried: a line on the screen, one in the results."""
        row = {"job": self.name, "verdict": verdict, "name": name, "reason": reason, "seconds": round(self.seconds, 1)}
        append_row(self.results / "results.jsonl", row)
        print(line_of(row), flush=True)
        # the logs once, with the first row that failed
        if verdict == FAILED and not self._shown:
            self._shown = True
            show_logs(self.folder)

    def attempt(self, name: str, action: Callable[[], str | None]) -> tuple[str, str]:
        """Tries something and reports it under this name: what it returns are details of a success. Says how it went."""
        try:
            verdict, reason = OK, action() or ""
        except Wrong as wrong:
            verdict, reason = FAILED, str(wrong)
        except Skipped as skipped:
            verdict, reason = SKIPPED, str(skipped)
        self.row(verdict, name, reason)
        return verdict, reason

    @property
    def seconds(self) -> float:
        """Since `started`, which a job may set anew for each of its rows."""
        return time.monotonic() - self.started

    def able(self, what: str) -> bool:
        """Does this back-end take part in that? qemu-storage-daemon knows no IOMMU; QEMU's own device is no vhost-user device."""
        if self.settings.backend == "qsd":
            return what in ("off", "uml", "libblkio")
        return self.settings.backend == "sluice" or what not in ("kill", "uml", "libblkio")

    def must_be_able(self, what: str) -> None:
        """Skips what this back-end takes no part in."""
        if not self.able(what):
            raise Skipped(f"{self.settings.backend} cannot")

    def backends(self, folder: Path | None = None, settings: Settings | None = None) -> BackEnds:
        """The back-ends of a folder, by default the job's."""
        return BackEnds(settings or self.settings, self.processes, folder or self.folder)

    def guest(self, machine: GuestMachine, at: Mapping[str, Pause] | None = None, folder: Path | None = None, limit: int | None = None) -> Guest:
        """A guest in a folder, by default the job's."""
        return Guest(self.processes, folder or self.folder, machine, limit or self.limit, at)


def must_be_root() -> None:
    """Skips what needs a chroot where that cannot be had."""
    if os.getuid() != 0:
        raise Skipped("a chroot needs root")


def first_wrong(*checks: Callable[[], str | None] | str | None) -> str | None:
    """The first of several checks that finds something wrong; those after it are not made."""
    for check in checks:
        found = check() if callable(check) else check
        if found:
            return found
    return None


def wrong_unless(reason: str | None) -> None:
    """Raises what is wrong, if anything is."""
    if reason:
        raise Wrong(reason)
