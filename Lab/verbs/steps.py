"""Runs the steps of `make test`, two beside each other, each with a log and a limit of time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from lab.processes import until

from verbs import summary

# seconds between the polite end of a step that takes too long and its last one
_GRACE = 10


@dataclass(frozen=True)
class Step:
    """A step: a program, the seconds it may take, and the steps that end before it begins. One that `prepares` builds what
    others run: it counts only where it fails. One whose tests look at the clock takes all lanes: nothing runs beside it."""

    name: str
    limit: float
    command: list[str]
    after: tuple[str, ...] = ()
    prepares: bool = False
    lanes: int = 1


@dataclass(frozen=True)
class Ended:
    """What came of a step; its status is that of a shell, 128 and the signal's number for one that was killed."""

    step: Step
    status: int
    seconds: float


@dataclass
class Runner:
    """Runs steps in the order they are listed, `lanes` at once, and prints the log of each when it has ended; that of one
    step alone as it comes."""

    folder: Path
    steps: list[Step]
    lanes: int = 2
    total: summary.Count = field(default_factory=summary.Count)
    broken: list[str] = field(default_factory=list)
    _unfinished: set[str] = field(default_factory=set)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _abandoned: bool = False

    def run(self) -> None:
        """Runs all of them. Interrupted, it ends what runs, prints its last lines, and raises."""
        waiting = list(self.steps)
        self._unfinished = {step.name for step in waiting}
        free = self.lanes
        running: set[Future[Ended]] = set()
        with ThreadPoolExecutor(self.lanes) as threads:
            try:
                while waiting or running:
                    for step in [step for step in waiting if not self._unfinished.intersection(step.after)]:
                        lanes = min(step.lanes, self.lanes)
                        if lanes > free:
                            # none that comes later goes before it
                            break
                        free -= lanes
                        waiting.remove(step)
                        running.add(threads.submit(self._run, step))
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for ended in (future.result() for future in done):
                        free += min(ended.step.lanes, self.lanes)
                        self._unfinished.discard(ended.step.name)
                        self._report(ended)
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Ends what runs."""
        self._abandoned = True
        for process in list(self._processes.values()):
            _end(process, signal.SIGTERM)
        for step in self.steps:
            for line in self.log(step.name).splitlines()[-12:] if step.name in self._unfinished else []:
                print(f"UNFINISHED {step.name}: {line}", flush=True)
        until(_GRACE, lambda: not self._processes)
        for process in list(self._processes.values()):
            _end(process, signal.SIGKILL)

    def log(self, name: str) -> str:
        """What a step has said so far."""
        path = self._log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _run(self, step: Step) -> Ended:
        alone = len(self.steps) == 1
        print(f"--- {step.name}" if alone else f"... {step.name}", flush=True)
        began = time.monotonic()
        with self._log(step.name).open("wb") as log, self._log(step.name).open("rb") as said:
            process = subprocess.Popen(
                step.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._processes[step.name] = process
            if self._abandoned:
                _end(process, signal.SIGTERM)
            stop_at = began + step.limit
            stopped = False
            while process.poll() is None:
                if time.monotonic() >= stop_at:
                    _end(process, signal.SIGKILL if stopped else signal.SIGTERM)
                    stopped, stop_at = True, stop_at + _GRACE
                try:
                    process.wait(0.2 if alone else max(0.0, stop_at - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
                if alone:
                    _copy(said.read())
            # nothing it started stays
            _end(process, signal.SIGKILL)
            del self._processes[step.name]
            if stopped:
                log.write(f"{step.name}: stopped after {step.limit:g} s\n".encode())
                log.flush()
            if alone:
                _copy(said.read())
        status = process.returncode
        return Ended(step, (status if status >= 0 else 128 - status) or int(stopped), time.monotonic() - began)

    def _report(self, ended: Ended) -> None:
        name, log = ended.step.name, self.log(ended.step.name)
        counted = summary.count(log, ended.status)
        if ended.step.prepares:
            counted = summary.Count(failed=min(counted.failed, 1))
        if counted.failed:
            self.broken.append(name)
        self.total += counted
        if len(self.steps) > 1 and not (ended.step.prepares and not counted.failed):
            print(f"--- {name}")
            _copy(log.encode())
        print(f"--- {name}: {counted}, {ended.seconds:.0f} s", flush=True)


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _copy(said: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()
