"""`sluice check` on Sluice's own back-ends and on other people's.

Each result is a line of check.jsonl. What a back-end breaks is tried again, twice: the table calls broken what was seen in at least two
of three tries, and says of what else was seen how often."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import program_version
from ..debian import inside
from ..job import Job, Row, append_row, must_be_root
from ..places import MIB, LabError, Skipped, Wrong, random_image
from ..processes import Word, run

FAULTS = ("broken", "wedged", "crashed")


@dataclass(frozen=True)
class Peer:
    """A back-end that is checked: the command prints its version with `version`, and serves with `serve`."""

    title: str
    type: str
    version: tuple[str, ...]
    serve: tuple[str, ...]          # SOCKET, IMAGE, SHARED and FOLDER stand for what a run has
    chroot: str = ""                # where it is not this host's

    @property
    def ours(self) -> bool:
        """Is it Sluice?"""
        return self.title.startswith("Sluice")


# no huge pages, no devices of this host, names of its own; with a period for figures it does not wait for a key
TESTPMD = ("dpdk-testpmd", "-l", "0-1", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--file-prefix=PREFIX",
           "--vdev=net_vhost0,iface=SOCKET,iommu-support=1", "--", "--stats-period=3600", "--forward-mode=rxonly", "--total-num-mbufs=4096")
QSD = ("qemu-storage-daemon", "--blockdev", "driver=file,filename=IMAGE,node-name=file",
       "--export", "type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path=SOCKET,writable=off")
QSD_VERSION = ("qemu-storage-daemon", "--version")

# In the order of the table's columns.
PEERS = {
    "sluice-blk": Peer("Sluice blk", "blk", ("SLUICE", "--version"), ("SLUICE", "serve", "blk", "--blk-file", "IMAGE", "--socket-path", "SOCKET")),
    "sluice-rng": Peer("Sluice rng", "rng", ("SLUICE", "--version"), ("SLUICE", "serve", "rng", "--socket-path", "SOCKET")),
    "dpdk": Peer("DPDK", "net", ("dpkg-query", "-W", "-f", "${Version}", "dpdk"), TESTPMD),
    "dpdk-new": Peer("DPDK", "net", ("dpkg-query", "-W", "-f", "${Version}", "dpdk-dev"), TESTPMD, "peers"),
    "qsd7": Peer("QSD", "blk", QSD_VERSION, QSD),
    "qsd10": Peer("QSD", "blk", QSD_VERSION, QSD, "trixie"),
    "qsd11": Peer("QSD", "blk", QSD_VERSION, QSD, "sid"),
    "virtiofsd7": Peer("virtiofsd", "fs", ("/usr/lib/qemu/virtiofsd", "--version"),
                       ("/usr/lib/qemu/virtiofsd", "--socket-path=SOCKET", "-o", "source=SHARED", "-o", "sandbox=chroot")),
    "virtiofsd": Peer("virtiofsd", "fs", ("/usr/libexec/virtiofsd", "--version"),
                      ("/usr/libexec/virtiofsd", "--socket-path=SOCKET", "--shared-dir=SHARED", "--sandbox", "none"), "peers"),
    "vsock": Peer("vhost-device-vsock", "vsock", ("vhost-device-vsock", "--version"),
                  ("vhost-device-vsock", "--socket", "SOCKET", "--guest-cid", "3", "--uds-path", "FOLDER/vm.vsock"), "peers"),
}


class Check(Job):
    """One back-end. What somebody else's breaks is a finding and no failure of this run; of ours nothing may be broken."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.peer, self.log = PEERS[self.argument], self.folder / "peer.log"

    def work(self) -> None:
        self.attempt(f"check {self.argument}", self._check)

    def _check(self) -> str:
        version = self._version()
        (self.folder / "shared").mkdir()
        random_image(self.folder / "disk.img", MIB)
        first = self._try(1, version, [])
        faults = [row["check"] for row in first if row.get("verdict") in FAULTS]
        tries = [first]
        if faults:
            # the second try is of what was found in the first, and the third is of the same
            tries += [self._try(number, version, faults) for number in (2, 3)]
        again = Counter(row["check"] for one in tries for row in one if row.get("verdict") in FAULTS)
        summary = next(row for row in first if row.get("summary"))
        kept = f"{summary['kept']} of {summary['kept'] + sum(summary[fault] for fault in FAULTS)} kept"
        if not self.peer.ours:
            return f"{version}: {kept}, {sum(count > 1 for count in again.values())} faults seen again"
        for row in (row for one in tries for row in one):
            if row.get("verdict") in (*FAULTS, "not checked"):
                raise Wrong(f"{row['check']}: {row['verdict']}: {row['evidence']}")
        return kept

    def _version(self) -> str:
        try:
            if self.peer.chroot:
                must_be_root()
            return program_version(self._command(self.peer.version), self.log)
        except (Skipped, LabError) as error:
            reason = str(error) if isinstance(error, Skipped) else f"it is not there: {error}"
            self._keep({"peer": self.argument, "title": self.peer.title, "version": "", "absent": reason})
            raise Skipped(reason) from error

    def _command(self, words: tuple[str, ...]) -> list[Word]:
        folder = str(self.folder)
        values = {"SOCKET": f"{folder}/peer.sock", "IMAGE": f"{folder}/disk.img", "SHARED": f"{folder}/shared", "FOLDER": folder,
                  "SLUICE": str(self.settings.sluice), "PREFIX": f"check{os.getpid()}"}
        filled: list[Word] = []
        for word in words:
            for name, value in values.items():
                word = word.replace(name, value)
            filled.append(word)
        return inside(self.peer.chroot, self.folder, filled) if self.peer.chroot else filled

    def _try(self, number: int, version: str, only: list[str]) -> list[Row]:
        # The end of `sluice check` is the peer's: a testpmd that is left over polls a processor for ever. The bound holds if `sluice
        # check` dies, and the other word if it kills the bound because the peer did not go when it was asked to.
        peer: list[Word] = ["timeout", "--foreground", "-s", "KILL", str(self.limit + 10), "setpriv", "--pdeathsig", "KILL", *self._command(self.peer.serve)]
        # of ours nothing comes to nothing, however busy the machine is
        patience = "20" if self.peer.ours else "5"
        command = [self.settings.sluice, "check", self.folder / "peer.sock", "--type", self.peer.type, "--json", "--timeout", patience,
                   *(word for name in only for word in ("--only", name)), "--", *peer]
        answer = self.folder / f"try.{number}"
        with open(answer, "wb") as out:
            status = run(command, self.limit, self.log, stdout=out)
        if status > 1:
            raise Wrong(f"sluice check ended with status {status}: {(self.log.read_text().splitlines() or [''])[-1]}")
        rows = [json.loads(line) for line in answer.read_text().splitlines()]
        for row in rows:
            self._keep({**row, "peer": self.argument, "title": self.peer.title, "version": version, "type": self.peer.type, "try": number})
        return rows

    def _keep(self, row: Row) -> None:
        append_row(Path(self.results, "check.jsonl"), row)
