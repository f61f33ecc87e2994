"""Processes with a time limit and an owner that ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Word = str | os.PathLike[str]
KILLED = 137    # the status of what its time limit ended


class Processes:
    """The processes that somebody started. Leaving the `with` block ends all that still run, each with its process group."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._limits: dict[int, threading.Timer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, command: Sequence[Word], log: Path | None = None, stdin: int | IO[Any] = subprocess.DEVNULL,
              stdout: int | IO[Any] | None = None, stderr: int | IO[Any] | None = None, cwd: Path | None = None,
              environment: Mapping[str, str] | None = None, limit: float | None = None) -> subprocess.Popen[bytes]:
        """Starts a process in a group of its own, which after so many seconds is killed; what it says is added to `log`, but for a
        stream that goes elsewhere."""
        kept = open(log, "ab") if log else None
        try:
            child = subprocess.Popen([os.fspath(word) for word in command], stdin=stdin, stdout=stdout or kept, stderr=stderr or kept,
                                     cwd=cwd, env={**os.environ, **(environment or {})}, process_group=0)
        finally:
            if kept:
                kept.close()
        with self._lock:
            self._running.append(child)
            if limit is not None:
                self._limits[child.pid] = clock = threading.Timer(limit, _kill_group, (child.pid,))
                clock.daemon = True
                clock.start()
        return child

    def kill(self, child: subprocess.Popen[bytes]) -> int:
        """Ends a process and its group at once, and says how it ended."""
        if child.returncode is None:
            _kill_group(child.pid)
        else:
            # its number may be another's by now, but not one of this session's
            _kill(session_members(os.getsid(0), child.pid))
        return self.reap(child)

    def stop(self, child: subprocess.Popen[bytes], seconds: float = 10) -> int:
        """A polite end, and after so many seconds the other; says how it ended."""
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
        return self.kill(child)

    def reap(self, child: subprocess.Popen[bytes], seconds: float | None = None) -> int:
        """Waits for a process, which after so many seconds is killed; the status is a shell's: 128 and the signal."""
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            _kill_group(child.pid)
            code = child.wait()
        with self._lock:
            if child in self._running:
                self._running.remove(child)
            if child.pid in self._limits:
                self._limits.pop(child.pid).cancel()
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """Kills what still runs."""
        with self._lock:
            running = list(self._running)
        for child in running:
            self.kill(child)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _kill(members: list[int]) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def run(command: Sequence[Word], limit: float, log: Path | None = None, stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Runs a command to its end, at most so many seconds; returns its status, KILLED for one that took too long."""
    with Processes() as processes:
        child = processes.start(command, log, stdin, stdout, cwd=cwd, environment=environment)
        return processes.reap(child, limit)


def output(command: Sequence[Word], limit: float = 60, log: Path | None = None, data: bytes | None = None) -> str | None:
    """What a command prints, or nothing at all if it fails or takes longer than so many seconds."""
    with Processes() as processes:
        child = processes.start(command, log, stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=None if log else subprocess.DEVNULL)
        try:
            said, _ = child.communicate(data, limit)
        except subprocess.TimeoutExpired:
            return None
        return said.decode(errors="replace") if processes.reap(child) == 0 else None


def until(seconds: float, condition: Callable[[], Any], every: float = 0.05) -> bool:
    """Waits until a condition holds, looking twenty times a second; says whether it did."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def session_members(session: int, group: int | None = None) -> list[int]:
    """The living processes of a session, by their ids, of any group or of one: a job's children in all their groups."""
    members = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and group in (None, int(fields[2])) and fields[0] not in "ZX":
                members.append(int(entry.name))
    return members


def kill_session(session: int) -> None:
    """Kills every process of a session, until none is left; one that is being born may be missed the first time."""
    for _ in range(50):
        members = session_members(session)
        if not members:
            return
        _kill(members)
        time.sleep(0.02)


def end_on_signals() -> None:
    """Lets SIGINT and SIGTERM end the program through its `with` and `finally` blocks; a second one does not disturb them."""
    def leave(*_: object) -> None:
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, signal.SIG_IGN)
        sys.exit(130)

    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, leave)
