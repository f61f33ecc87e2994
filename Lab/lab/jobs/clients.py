"""Front-ends without a machine of QEMU's: user-mode Linux, and what uses libblkio."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Callable
from pathlib import Path

from ..backend import BackEnd
from ..debian import inside
from ..initramfs import initramfs
from ..job import Job, must_be_root, wrong_unless
from ..places import MIB, Wrong, part_sum, random_image
from ..processes import KILLED, Word, run
from ..talk import Talk
from .matrix import halves_wrong

Started = Callable[[BackEnd], object]      # told of the back-end before its client starts
CLIENTS = ("qemu-io", "bench", "nbdkit")


def boot_uml(job: Job, started: Started = lambda _: None) -> None:
    """User-mode Linux: another front-end, in one process. It spins for ever when its back-end dies, so its clock is hard."""
    job.must_be_able("uml")
    image, folder = job.folder / "vda.img", job.folder
    random_image(image, 8 * MIB, 16 * MIB)
    original = part_sum(image, 0, 8 * MIB)
    ends = job.backends()
    # its kernel takes every transport feature: it has no DMA layer to go with the one, and starts packed rings with the wrong wrap
    # counters
    started(ends.start_disk("vda", image, 1, ("--access-platform", "off", "--no-packed")))
    command = ["linux.uml", "mem=256M", f"virtio_uml.device={folder}/vda.sock:2", f"initrd={initramfs('uml')}", "con=null",
               "con0=null,fd:2", "ssl=null", "ssl0=null,fd:1", "loglevel=5", "sluice.talk=/dev/ttyS0", "sluice.unattended", "sluice.vda=raw"]
    with open(folder / "talk.log", "wb") as talk_log:
        code = run(command, 90, folder / "uml.log", stdout=talk_log)
    talk = Talk(folder / "talk.log")
    if code == KILLED:
        raise Wrong("no end within 90 s")
    if talk.said("vda", "verdict") != "ok":
        raise Wrong(f"no good verdict (status {code})")
    wrong_unless(halves_wrong(talk, "vda", image, original))
    wrong_unless(ends.stop("vda"))
    image.unlink()


class UserModeLinux(Job):
    """A guest that is a process of this host."""

    def work(self) -> None:
        self.attempt("uml", lambda: boot_uml(self))


class Libblkio(Job):
    """libblkio, through what uses it: `qemu-io` (with qemu-img's convert), `bench` (qemu-img's) and `nbdkit` (its blkio plugin), each
    with a back-end of its own. The argument is one of them, or nothing for all."""

    def work(self) -> None:
        for client in [self.argument] if self.argument in CLIENTS else CLIENTS:
            folder = self.folder / client
            folder.mkdir()
            self.started += self.seconds
            self.attempt(f"libblkio {client}", lambda: LibblkioClient(self, client, folder).run())


class LibblkioClient:
    """One client of libblkio, in a Debian that has it."""

    def __init__(self, job: Job, client: str, folder: Path) -> None:
        self.job, self.client, self.folder = job, client, folder
        self.image, self.original, self.copy = (folder / name for name in ("disk.img", "original.img", "copy.img"))
        self.options = f"driver=virtio-blk-vhost-user,path={folder}/disk.sock,cache.direct=on"

    def run(self, started: Started = lambda _: None) -> None:
        """Raises Wrong with what was wrong."""
        self.job.must_be_able("libblkio")
        must_be_root()
        random_image(self.image, 16 * MIB)
        self.original.write_bytes(self.image.read_bytes())
        ends = self.job.backends(self.folder)
        started(ends.start_disk("disk", self.image, 2))
        {"qemu-io": self._edits, "bench": self._bench, "nbdkit": self._nbd}[self.client]()
        wrong_unless(ends.stop("disk"))
        for image in self.folder.glob("*.img"):
            image.unlink()

    def _tool(self, failure: str, *command: Word) -> None:
        if run(inside("blkio", self.folder, command), 120, self.folder / "tool.log"):
            raise Wrong(failure)

    def _same(self, one: Path, other: Path, failure: str) -> None:
        if not filecmp.cmp(one, other, shallow=False):
            raise Wrong(failure)

    def _edits(self) -> None:
        self._tool("qemu-img cannot read the disk", "qemu-img", "convert", "--image-opts", self.options, "-O", "raw", self.copy)
        self._same(self.copy, self.original, "libblkio read other bytes than the image held")
        # it stays a second, for the sake of a look at what it negotiated
        edits = ("write -P 0xa5 1M 1M", "write -P 0x5a 4608 1536", "write -z 2M 1M", "discard 3M 1M", "flush",
                 "read -P 0xa5 1M 1M", "read -P 0x5a 4608 1536", "read -P 0 2M 1M", "sleep 1000")
        self._tool("qemu-io failed", "qemu-io", *(word for edit in edits for word in ("-c", edit)), "--image-opts", self.options)
        # the same edits on a copy, from outside
        with open(self.copy, "r+b") as copy:
            for at, data in ((MIB, b"\xa5" * MIB), (4608, b"\x5a" * 1536), (2 * MIB, bytes(2 * MIB))):
                copy.seek(at)
                copy.write(data)
        self._same(self.copy, self.image, "the image does not hold what was written")

    def _bench(self) -> None:
        """What it reads is not looked at; what it writes is a pattern, and it goes over the whole disk several times."""
        bench = ("-c", "20000", "-d", "32", "-s", "4096")
        self._tool("qemu-img bench failed", "qemu-img", "bench", *bench, "--image-opts", self.options)
        self._same(self.image, self.original, "reading changed the image")
        self._tool("qemu-img bench -w failed", "qemu-img", "bench", "-w", *bench, "--pattern=165", "--flush-interval=1000", "--image-opts", self.options)
        if part_sum(self.image) != hashlib.md5(b"\xa5" * 16 * MIB).hexdigest():
            raise Wrong("the image does not hold what was written")

    def _nbd(self) -> None:
        serve = ("nbdkit", "-U", "-", "blkio", "virtio-blk-vhost-user", f"path={self.folder}/disk.sock", "--run")
        new = self.folder / "new.img"
        random_image(new, 16 * MIB)
        # several times, so that there is time to ask what it negotiated
        self._tool("nbdkit cannot read the disk", *serve, f'for n in 1 2 3 4 5 6 7 8; do nbdcopy "$uri" {self.copy} || exit; done')
        self._same(self.copy, self.original, "nbdkit read other bytes than the image held")
        self._tool("nbdkit cannot write the disk", *serve, f'nbdcopy --flush {new} "$uri"')
        self._same(new, self.image, "the image does not hold what was written")
