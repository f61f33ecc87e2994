"""A machine under a monitor: for what has to be done to a running guest from outside."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import threading
from pathlib import Path
from typing import Any

from .backend import BackEnd
from .initramfs import initramfs
from .kernel import kernel
from .places import LabError, Wrong
from .platforms import platform
from .processes import Processes, until
from .talk import Talk

# No multiple of 256 KiB: of such memory QEMU before 9.0 forgets, under emulation, which pages were written while it migrates. It clears
# their dirty bits there by the word and leaves the translated code's cache as it is; the guest then wakes up with pages of some seconds
# ago, with any back-end. Page by page it does it right.
MEMORY = "393224K"
WORDS = "console=ttyS0 loglevel=5 mitigations=off tsc=reliable no_timer_check panic=0"


class MonitorDisk:
    """A disk behind a root port of its own."""

    def __init__(self, number: int, end: BackEnd, iommu: str, reconnect: bool = False) -> None:
        self.number, self.socket, self.iommu, self.reconnect = number, end.socket, iommu, reconnect

    @property
    def device(self) -> str:
        """The device, as -device and device_add take it."""
        bit = ",iommu_platform=on,ats=on" if self.iommu != "off" else ""
        return f"vhost-user-blk-pci,id=disk{self.number},chardev=chardev{self.number},bus=port{self.number},num-queues=1,disable-legacy=on{bit}"

    def options(self) -> list[str]:
        """What QEMU is started with."""
        number = self.number
        return ["-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}",
                "-chardev", f"socket,id=chardev{number},path={self.socket}{',reconnect=1' if self.reconnect else ''}", "-device", self.device]

    def connection(self) -> dict[str, Any]:
        """The connection, as chardev-add takes it."""
        again = {"reconnect": 1} if self.reconnect else {}
        data = {"server": False, **again, "addr": {"type": "unix", "data": {"path": str(self.socket)}}}
        return {"id": f"chardev{self.number}", "backend": {"type": "socket", "data": data}}


class Machine:
    """One machine in a folder of its own: talk.log (the guest's reports), console.log, qmp.log, qemu.log. Several may run at once."""

    def __init__(self, processes: Processes, folder: Path, iommu: str, limit: float) -> None:
        if iommu not in ("off", "strict"):
            raise LabError(f"a machine's IOMMU is off or strict, not '{iommu}'")
        self.processes, self.folder, self.iommu, self.limit = processes, folder, iommu, limit
        self.talk = Talk(folder / "talk.log")
        self.messages: list[dict[str, Any]] = []       # of the monitor
        self.qemu: subprocess.Popen[bytes] | None = None
        self._inputs: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._readers: list[threading.Thread] = []
        self._closing = threading.Event()

    def command(self, words: str, options: list[str], boot: Path | None, more_memory: str) -> list[str]:
        """QEMU's command line."""
        kind = platform(self.iommu)
        if boot:
            # a disk that starts a kernel with words of its own
            start = ["-drive", f"if=none,id=boot,format=raw,file={boot},file.locking=off", "-device", "ide-hd,drive=boot,bootindex=0"]
        else:
            start = ["-kernel", str(kernel("6.1") / "image"), "-initrd", str(initramfs("6.1")), "-append", f"{WORDS} {words} {kind.words}".rstrip()]
        return [kind.program, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi", *kind.processor, "-smp", "2",
                *kind.devices, *start, "-machine", f"{kind.machine},memory-backend=mem", "-m", MEMORY + more_memory,
                "-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on", "-serial", f"file:{self.folder}/console.log",
                "-chardev", f"pipe,id=talk,path={self.folder}/talk", "-serial", "chardev:talk",
                "-chardev", f"pipe,id=qmp,path={self.folder}/qmp", "-mon", "chardev=qmp,mode=control", *options]

    def start(self, words: str, options: list[str], boot: Path | None = None, more_memory: str = "") -> Machine:
        """Returns when the monitor answers. The words go to the kernel, unless a disk boots one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for channel in ("talk", "qmp"):
            for end in ("in", "out"):
                os.mkfifo(self.folder / f"{channel}.{end}")
            # opened for both, so that neither side sees an end while the other is not there yet
            self._inputs[channel] = os.open(self.folder / f"{channel}.in", os.O_RDWR | os.O_NONBLOCK)
            reader = threading.Thread(target=self._read, args=(channel, os.open(self.folder / f"{channel}.out", os.O_RDWR | os.O_NONBLOCK)), daemon=True)
            reader.start()
            self._readers.append(reader)
        try:
            self.qemu = self.processes.start(self.command(words, options, boot, more_memory), self.folder / "qemu.log", limit=self.limit)
            self.ask("qmp_capabilities")
        except Wrong as wrong:
            raise Wrong("the machine did not start") from wrong
        return self

    def _read(self, channel: str, heard: int) -> None:
        """Keeps what comes, byte by byte: a line may be begun in one machine and ended in the one it migrates to."""
        poll, rest = select.poll(), b""
        poll.register(heard, select.POLLIN)
        with open(self.folder / f"{channel}.log", "ab", buffering=0) as log:
            while poll.poll(100) or not self._closing.is_set():
                try:
                    data = os.read(heard, 65536)
                except BlockingIOError:
                    continue
                log.write(data)
                if channel == "qmp":
                    *lines, rest = (rest + data).split(b"\n")
                    self.messages += [json.loads(line) for line in lines if line.strip()]
        os.close(heard)

    def runs(self) -> bool:
        """Does QEMU run?"""
        return self.qemu is not None and self.qemu.poll() is None

    def ask(self, command: str, **arguments: Any) -> Any:
        """Asks the monitor; returns the answer's value, raises Wrong with its error."""
        number = next(self._numbers)
        question = {"execute": command, "arguments": {name.replace("_", "-"): value for name, value in arguments.items()}, "id": number}
        os.write(self._inputs["qmp"], json.dumps(question).encode() + b"\n")

        def answer() -> dict[str, Any] | None:
            return next((message for message in list(self.messages) if message.get("id") == number), None)

        if not until(30, lambda: answer() or not self.runs()):
            raise Wrong(f"the monitor does not answer {command}")
        said = answer()
        if said is None:
            raise Wrong(f"QEMU ended before it answered {command}")
        if "error" in said:
            raise Wrong(said["error"]["desc"])
        return said["return"]

    def must(self, reason: str, command: str, **arguments: Any) -> Any:
        """Asks the monitor for what is not to fail: the reason says what it means if it does."""
        try:
            return self.ask(command, **arguments)
        except Wrong as wrong:
            raise Wrong(reason) from wrong

    def events(self, name: str, device: str | None = None) -> int:
        """How many of these there were."""
        return sum(message.get("event") == name and (device is None or message["data"].get("device") == device) for message in list(self.messages))

    def heard(self, pattern: str, count: int, seconds: float) -> bool:
        """Waits until the guest has made so many reports of a kind, or is gone."""
        return until(seconds, lambda: self.talk.heard(pattern) >= count or not self.runs())

    def more(self, pattern: str, count: int, seconds: float) -> bool:
        """Waits for so many more reports of a kind; says whether they came."""
        wanted = self.talk.heard(pattern) + count
        self.heard(pattern, wanted, seconds)
        return self.talk.heard(pattern) >= wanted

    def tell(self, line: str) -> None:
        """Sends the guest a line."""
        os.write(self._inputs["talk"], f"{line}\n".encode())

    def ended(self, seconds: float) -> bool:
        """Waits for QEMU's own end."""
        if not until(seconds, lambda: not self.runs()):
            return False
        self.drop()
        return True

    def drop(self) -> None:
        """Ends it at once. What is still in the pipes is read first."""
        if self.qemu:
            self.processes.stop(self.qemu)
            self.qemu = None
        if not self._closing.is_set():
            self._closing.set()
            for reader in self._readers:
                reader.join(10)
            for channel, descriptor in self._inputs.items():
                os.close(descriptor)
                for end in ("in", "out"):
                    (self.folder / f"{channel}.{end}").unlink(missing_ok=True)
