"""One guest under QEMU's emulation (no /dev/kvm needed), from its boot to its verdict."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .places import Wrong
from .processes import KILLED, Processes
from .qemu import GuestMachine
from .talk import Talk, words_of

Pause = Callable[[str], object]     # what is to be done when a guest pauses; it is given the disk's name


class Guest:
    """A guest and its logs in a folder: talk.log (its reports), console.log (its kernel), qemu.log.

    `at` says what is to be done when the guest reports pause=NAME; the guest goes on when it is done. `run` does all in the
    calling thread; `start` in a thread of its own, which `wait` waits for."""

    def __init__(self, processes: Processes, folder: Path, machine: GuestMachine, limit: float, at: Mapping[str, Pause] | None = None) -> None:
        self.processes, self.folder, self.machine, self.limit, self.at = processes, folder, machine, limit, at or {}
        self.talk = Talk(folder / "talk.log")
        self.qemu: subprocess.Popen[bytes] | None = None
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Boots it and waits for its end. Raises Wrong with the reason if that is not a good verdict."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        pipes = [folder / "talk.in", folder / "talk.out"]
        for pipe in pipes:
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
        (folder / "talk.log").write_bytes(b"")
        command = self.machine.command(folder)
        # opened for both, so that neither side sees an end while the other is not there yet
        heard = os.open(pipes[1], os.O_RDWR | os.O_NONBLOCK)
        self._answers = os.open(pipes[0], os.O_RDWR | os.O_NONBLOCK)
        try:
            self.qemu = self.processes.start(command, folder / "qemu.log")
            code = self._listen(self.qemu, heard)
        finally:
            if self.qemu:
                self.processes.kill(self.qemu)
            os.close(heard)
            os.close(self._answers)
            for pipe in pipes:
                pipe.unlink(missing_ok=True)
        reason = self._reason(code)
        if reason:
            with open(folder / "guest.log", "a") as log:
                log.write(f"guest: {reason}\n")
            raise Wrong(reason)

    def start(self) -> None:
        """Boots it beside what the caller does next."""
        def run() -> None:
            try:
                self.run()
            except Exception as error:      # told by `wait`, in the thread that asked for the guest
                self.failure = str(error) or repr(error)
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def lives(self) -> bool:
        """Is a started guest still there?"""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits for a started guest's end, which comes with its time limit at the latest; raises what `run` would have raised."""
        if self._thread:
            self._thread.join()
        if self.failure:
            raise Wrong(self.failure)

    def say(self, line: str) -> None:
        """Sends the guest a line; one that is gone hears nothing."""
        with contextlib.suppress(OSError, AttributeError):
            os.write(self._answers, f"{line}\n".encode())

    def _listen(self, qemu: subprocess.Popen[bytes], heard: int) -> int:
        """Hears the guest until QEMU ends, or its time does; returns QEMU's status."""
        end = time.monotonic() + self.limit
        gone = os.pidfd_open(qemu.pid)
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        poll.register(gone, select.POLLIN)
        rest, code = b"", None
        try:
            while code is None:
                ready = poll.poll(max(0, end - time.monotonic()) * 1000)
                if not ready or time.monotonic() > end:
                    self.processes.kill(qemu)
                    code = KILLED
                elif gone in (descriptor for descriptor, _ in ready):
                    code = self.processes.reap(qemu)
                try:
                    while data := os.read(heard, 65536):
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            self._hear(line.decode(errors="replace").rstrip("\r"))
                except BlockingIOError:
                    pass
        finally:
            os.close(gone)
        return code

    def _hear(self, line: str) -> None:
        with open(self.folder / "talk.log", "a") as log:
            log.write(line + "\n")
        words = words_of(line)
        if "pause" in words:
            if words["pause"] in self.at:
                self.at[words["pause"]](words.get("disk", ""))
            self.say("go")

    def _reason(self, code: int) -> str | None:
        """Why this was no good end."""
        verdict = self.talk.verdict
        if code == 0 and verdict == "ok":
            return None
        if code == KILLED:
            return f"no verdict within {self.limit} s"
        if code:
            return f"QEMU ended with status {code}"
        if not verdict:
            return "the guest ended without a verdict"
        reasons = [words["reason"].replace("_", " ") for words in self.talk.reports() if words.get("verdict") == "bad" and "reason" in words]
        return f"the guest says: {' '.join(reasons) or verdict}"
