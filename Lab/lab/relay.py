"""A relay between QEMU and a vfio-user server that passes everything on, and asks QEMU for memory of its own accord: what a server could do
that somebody has taken over."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

from .places import Wrong

HEADER = struct.Struct("<HHIII")        # id, command, size, flags, errno
DMA_READ, DMA_WRITE = 11, 12
REPLY, FAILED = 1, 0x20
OWN = 0x8000                            # ids of ours begin here; a server counts from 0 and is long done before


class Relay:
    """Listens in a server's place. `read` and `write` ask QEMU as the server would."""

    def __init__(self, path: Path, server: Path) -> None:
        self.path, self.server = path, server
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._lock = threading.Lock()
        self._answers: dict[int, tuple[int, bytes]] = {}
        self._answered = threading.Condition()
        self._number = OWN
        self._machine: socket.socket | None = None
        self._server: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """No more of it."""
        for end in (self._listener, self._machine, self._server):
            if end:
                end.close()

    def read(self, address: int, count: int) -> tuple[int, bytes]:
        """Asks for memory; the error, which is 0 for none, and what came."""
        error, payload = self._ask(DMA_READ, struct.pack("<QQ", address, count))
        return error, payload[16:]

    def write(self, address: int, data: bytes) -> int:
        """Asks to have memory written; the error."""
        return self._ask(DMA_WRITE, struct.pack("<QQ", address, len(data)) + data)[0]

    def _ask(self, command: int, payload: bytes) -> tuple[int, bytes]:
        self._number += 1
        number = self._number
        self._to_machine(HEADER.pack(number, command, HEADER.size + len(payload), 0, 0) + payload, [])
        with self._answered:
            if not self._answered.wait_for(lambda: number in self._answers, 30):
                raise Wrong("QEMU does not answer a command of the relay's")
            return self._answers.pop(number)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            machine, _ = self._listener.accept()
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(str(self.server))
            self._machine, self._server = machine, server
            threading.Thread(target=self._pass_on, args=(server, machine, self._to_machine), daemon=True).start()
            self._pass_on(machine, server, lambda message, descriptors: _send(server, message, descriptors))

    def _to_machine(self, message: bytes, descriptors: list[int]) -> None:
        if not self._machine:
            raise Wrong("no machine is connected to the relay")
        with self._lock:
            _send(self._machine, message, descriptors)

    def _pass_on(self, one: socket.socket, other: socket.socket, send: object) -> None:
        with contextlib.suppress(OSError):
            while message := _receive(one):
                data, descriptors = message
                number, command, _, flags, error = HEADER.unpack(data[: HEADER.size])
                if flags & 0xF == REPLY and number > OWN and command in (DMA_READ, DMA_WRITE):
                    with self._answered:
                        self._answers[number] = (error or 1 if flags & FAILED else 0, data[HEADER.size:])
                        self._answered.notify_all()
                else:
                    send(data, descriptors)     # type: ignore[operator]
                for descriptor in descriptors:
                    os.close(descriptor)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _send(to: socket.socket, message: bytes, descriptors: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = to.sendmsg([message], rights)
    to.sendall(message[sent:])


def _receive(end: socket.socket) -> tuple[bytes, list[int]] | None:
    """A message and its descriptors; nothing at the end."""
    data, descriptors = b"", array.array("i")
    size = HEADER.size
    while len(data) < size:
        more, control, _, _ = end.recvmsg(size - len(data), socket.CMSG_SPACE(64 * 4))
        for level, kind, rights in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(rights[: len(rights) // 4 * 4])
        if not more:
            return None
        data += more
        if len(data) == HEADER.size:
            size = HEADER.unpack(data)[2]
    return data, list(descriptors)
