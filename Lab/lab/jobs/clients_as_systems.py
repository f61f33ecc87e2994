"""The lab's systems that are no guest of QEMU's: front-ends that are jobs of their own become rows here, and what cannot be served says
why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..backend import BackEnd, qemu_version
from ..job import FAILED, OK
from ..places import MIB
from ..processes import output
from ..watch import Watch
from .clients import CLIENTS, LibblkioClient, Started, boot_uml
from .systems import SystemJob


class ClientSystem(SystemJob):
    """A front-end that does what it does; its back-end says what ring and bit are."""

    def watched(self, name: str, action: Callable[[Started], None]) -> None:
        """Reports what an action with one disk comes to, under its own name and as a row."""
        watches: list[Watch] = []

        def started(backend: BackEnd) -> None:
            if self.settings.backend == "sluice":
                watches.append(Watch(backend, 0.05))

        self.started += self.seconds
        verdict, reason = self.attempt(name, lambda: action(started))
        for watch in watches:
            watch.stop()
        seen = watches[0].kept if watches else None
        row = self.new_row(bit="off", bytes_verified=16 * MIB if verdict == OK else None)
        row.take(seen)
        if seen:
            row.negotiated, row.ring = seen["negotiated_features"], seen["ring"]
            row.bit = "on" if seen["access_platform_accepted"] else "off"
        self.report(row, verdict, "" if verdict == OK else reason)


class UserModeLinuxSystem(ClientSystem):
    """User-mode Linux."""

    def work(self) -> None:
        self.watched("uml", lambda started: boot_uml(self, started))


class LibblkioSystem(ClientSystem):
    """The clients of libblkio."""

    def work(self) -> None:
        for client in CLIENTS:
            folder = Path(self.folder, client)
            folder.mkdir()
            self.front_end = "libblkio, qemu-img bench" if client == "bench" else f"libblkio, {client}"
            self.watched(f"libblkio {client}", LibblkioClient(self, client, folder).run)


class ChannelBus(SystemJob):
    """vhost-user-blk on the channel bus: QEMU has no such device, with any back-end."""

    def work(self) -> None:
        self.front_end = qemu_version("qemu-system-s390x")
        if '"vhost-user-blk-ccw"' in (output(["qemu-system-s390x", "-device", "help"]) or ""):
            self.report(self.new_row(bit="on"), FAILED, "this QEMU has vhost-user-blk-ccw: the lab does not know how to use it yet")
        else:
            self.skip("no back-end can be a disk or a source of entropy here: of vhost-user devices, QEMU's channel bus has the file system alone "
                      "(vhost-user-fs-ccw), in 7.2, 10.0 and 11.1 alike; zPCI is this machine's other bus", bit="on")


class DPDK(SystemJob):
    """DPDK drives vhost-user devices too, but none that the lab has: the virtio drivers that Debian packages are for net and crypto."""

    def work(self) -> None:
        self.skip("its virtio drivers are for net and crypto: none for a disk, none for entropy")
