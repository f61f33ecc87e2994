"""What a vfio-user server takes of a processor to map and unmap memory: `Scripts/bench maps` starts it.

    Scripts/bench maps [--count N] [--held N] [--json]

A client of this program's own does what QEMU does behind an IOMMU whose guest maps for every request: DMA_MAP of a page of a shared
file, with its descriptor, and DMA_UNMAP of it, while so many other pages are mapped; each is answered before the next is asked. The
time is the server's on a processor, system calls included, as the kernel's scheduler counts it; what waits costs nothing. It is given
for rounds of maps alone and of unmaps alone, the median of five, and beside it that of a message which changes nothing
(DEVICE_GET_INFO): so much is the socket's, and the rest is the map's own."""

from __future__ import annotations

import json
import mmap
import os
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.backend import SluiceFunction
from lab.places import MIB, LabError, Settings, random_image
from lab.processes import Processes, end_on_signals

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO = 1, 2, 3, 4
PAGE, ROUNDS = 4096, 5


class Client:
    """As much of a vfio-user client as this takes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.number = 0
        said = json.dumps({"capabilities": {"max_msg_fds": 16, "max_dma_maps": 65535, "pgsizes": PAGE}}).encode() + b"\0"
        self.ask(VERSION, struct.pack("<HH", 0, 0) + said)

    def ask(self, command: int, payload: bytes, descriptor: int | None = None) -> bytes:
        """One command and its answer's payload."""
        self.number = (self.number + 1) & 0xFFFF
        message = struct.pack("<HHIII", self.number, command, 16 + len(payload), 0, 0) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("<i", descriptor))] if descriptor is not None else []
        self.socket.sendmsg([message], rights)
        number, answered, size, flags, error = struct.unpack("<HHIII", self._read(16))
        rest = self._read(size - 16)
        if (number, answered) != (self.number, command) or flags & 0x20:
            raise LabError(f"command {command} was answered with the error {error}")
        return rest

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise LabError("the server has closed the connection")
            data += more
        return data

    def map(self, page: int, descriptor: int) -> None:
        """Maps one page of the file, at an address of its own."""
        self.ask(DMA_MAP, struct.pack("<IIQQQ", 32, 3, page * PAGE, address(page), PAGE), descriptor)

    def unmap(self, page: int) -> None:
        """Takes it back."""
        self.ask(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, address(page), PAGE))


def address(page: int) -> int:
    """As Linux gives them: from the top of 4 GiB down."""
    return 0xFFFFF000 - page * PAGE


def on_processor(process: int) -> int:
    """Nanoseconds that all threads of a process were on a processor."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            pass
    return total


def in_program(process: int) -> tuple[int, int]:
    """Hundredths of a second of a process in its own code, and in the kernel's for it."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return int(words[11]), int(words[12])


def measure(count: int, held: int) -> dict[str, float]:
    """Microseconds of the server for a map, an unmap, and a message that changes nothing; and what part of all was its own code's."""
    settings = Settings.of()
    with tempfile.TemporaryDirectory(prefix="sluice-maps.", dir="/dev/shm") as folder, Processes() as processes:
        image = Path(folder, "image")
        random_image(image, MIB)
        server = SluiceFunction(processes, Path(folder), "maps", settings.sluice, "nvme", image)
        server.start()
        memory = os.memfd_create("guest")
        os.ftruncate(memory, (held + count) * PAGE)
        # all of it is there, as a guest's memory is that is mapped for a device
        with mmap.mmap(memory, 0) as pages:
            for page in range(held + count):
                pages[page * PAGE] = 1
        client = Client(server.socket)
        for page in range(held):
            client.map(page, memory)
        assert server.process
        process = server.process.pid
        # neighbours in the table come and go in no order, as a guest's do
        order = [held + place * 7919 % count for place in range(count)]

        def costs(action: Callable[[int], object]) -> float:
            began = on_processor(process)
            for page in order:
                action(page)
            return (on_processor(process) - began) / count / 1000

        rounds: dict[str, list[float]] = {"map": [], "unmap": [], "message": []}
        before = in_program(process)
        for _ in range(ROUNDS):
            rounds["map"].append(costs(lambda page: client.map(page, memory)))
            rounds["unmap"].append(costs(client.unmap))
            rounds["message"].append(costs(lambda _: client.ask(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))))
        user, system = (now - then for now, then in zip(in_program(process), before))
        client.socket.close()
        server.stop()
        return {**{name: statistics.median(values) for name, values in rounds.items()}, "user": user / max(1, user + system)}


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(__doc__)
        return 0
    values = {"--count": "2003", "--held": "1000"}
    rest = [word for word in arguments if word != "--json"]
    while rest:
        word = rest.pop(0)
        if word not in values or not rest or not rest[0].isdecimal() or rest[0] == "0":
            print(f"maps: {word}: --help says what there is", file=sys.stderr)
            return 2
        values[word] = rest.pop(0)
    end_on_signals()
    try:
        said = measure(int(values["--count"]), int(values["--held"]))
    except LabError as error:
        print(f"maps: {error}", file=sys.stderr)
        return 1
    if "--json" in arguments:
        print(json.dumps({**said, "held": int(values["--held"])}))
    else:
        plain = said["message"]
        print(f"{values['--held']} pages mapped; µs of the server on a processor: map {said['map']:.1f} ({said['map'] - plain:.1f} its own), "
              f"unmap {said['unmap']:.1f} ({said['unmap'] - plain:.1f}), a message that changes nothing {plain:.1f}; {said['user']:.0%} of it in its own code, the rest in the kernel")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
