"""Debian's suites: packages of any suite and architecture, unpacked and never installed, and folders with a whole small Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .places import LabError, cache, intact, locked, mirror, seal
from .processes import Word, output, run


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, for a message about a failure."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else ""


class Suite:
    """A view of one suite, for one architecture, that the host's own apt never sees."""

    def __init__(self, name: str, architecture: str = "amd64") -> None:
        self.name, self.architecture = name, architecture
        self.folder = cache() / "apt" / (name if architecture == "amd64" else f"{name}-{architecture}")

    @property
    def sources(self) -> Path:
        """The list of places apt fetches from."""
        return self.folder / "sources.list"

    def options(self, sources: Path | None = None) -> list[str]:
        """What apt has to be told for this view."""
        folder = self.folder
        settings = {
            "Dir::Etc::sourcelist": sources or self.sources, "Dir::Etc::sourceparts": folder / "parts",
            "Dir::Etc::preferencesparts": folder / "parts", "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status", "Dir::Cache": folder, "APT::Sandbox::User": "root",
            "Acquire::Languages": "none", "APT::Architecture": self.architecture, "APT::Architectures": self.architecture,
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> Suite:
        """Makes the package lists fresh; apt checks the archive's signature."""
        for part in ("lists/partial", "archives/partial", "parts"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.sources.write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror()} {self.name} main\n")
        (self.folder / "status").write_text("")
        log = self.folder / "update.log"
        log.unlink(missing_ok=True)
        if run(["apt-get", *self.options(), "update", "-qq"], 600, log):
            raise LabError(f"{last_lines(log)}\napt cannot read the package lists of {self.name}")
        return self

    def kernel_package(self, flavour: str) -> str:
        """The package of the newest kernel, which the package `linux-image-FLAVOUR` depends on."""
        said = output(["apt-cache", *self.options(), "depends", f"linux-image-{flavour}"]) or ""
        for line in said.splitlines():
            name = line.strip().removeprefix("Depends: ")
            if name.startswith("linux-image-") and name[12].isdecimal():
                return name
        raise LabError(f"{self.name} has no linux-image-{flavour}")

    def unpack(self, package: str, folder: Path) -> Path:
        """Downloads one package into the folder, where apt checks its checksum, and unpacks it there, in `root`."""
        log = folder / "download.log"
        if run(["apt-get", *self.options(), "download", package], 900, log, cwd=folder):
            raise LabError(f"{last_lines(log)}\napt cannot download {package}")
        subprocess.run(["dpkg", "-x", *folder.glob("*.deb"), folder / "root"], check=True, timeout=300)
        return folder / "root"


def package(suite: str, architecture: str, name: str) -> Path:
    """The folder of one unpacked package: fetched by apt once, then from the cache."""
    folder = cache() / f"package-{suite}-{architecture}-{name}"
    with locked(folder.name):
        if not intact(folder):
            if folder.exists():
                say(f"package: the cached {name} is damaged; fetching it again")
            unpacked = Path(f"{folder}.unpacked")
            for left in (folder, unpacked):
                shutil.rmtree(left, ignore_errors=True)
            unpacked.mkdir()
            root = Suite(suite, architecture).update().unpack(name, unpacked)
            seal(root)
            root.rename(folder)
            shutil.rmtree(unpacked)
    return folder


@dataclass(frozen=True)
class Chroot:
    """A minimal Debian of another suite in a folder, made by debootstrap once. To make and to use one needs root."""

    suite: str
    kind: str
    packages: str
    program: str     # one of them, by which a folder that is whole is known

    def folder(self) -> Path:
        """Where it is; makes it if need be."""
        folder = cache() / f"chroot-{self.suite}-{self.kind}"
        complete = folder / ".complete"
        with locked(folder.name):
            if not (complete.exists() and complete.read_text().strip() == self.packages and os.access(folder / "usr/bin" / self.program, os.X_OK)):
                if os.getuid() != 0:
                    raise LabError("a chroot needs root")
                new, log = Path(f"{folder}.new"), Path(f"{folder}.log")
                for left in (folder, new):
                    shutil.rmtree(left, ignore_errors=True)
                log.unlink(missing_ok=True)
                if run(["debootstrap", "--variant=minbase", f"--include={self.packages}", self.suite, new, mirror()], 1800, log):
                    raise LabError(f"{last_lines(log, 8)}\ndebootstrap failed")
                for left in (new / "var/cache/apt/archives").glob("*.deb"):
                    left.unlink()
                (new / ".complete").write_text(self.packages + "\n")
                new.rename(folder)
        return folder


CHROOTS = {
    # what uses libblkio: QEMU's tools and nbdkit
    "blkio": Chroot("trixie", "blkio", "qemu-utils,qemu-block-extra,libblkio1,nbdkit,libnbd-bin", "nbdcopy"),
    # QEMU's x86-64 machine
    "trixie": Chroot("trixie", "system", "qemu-system-x86,qemu-utils", "qemu-system-x86_64"),
    "sid": Chroot("sid", "system", "qemu-system-x86,qemu-utils", "qemu-system-x86_64"),
    # vhost-user back-ends that Debian 12 does not have, or has older ones of
    "peers": Chroot("sid", "peers", "virtiofsd,vhost-device-vsock,dpdk-dev", "dpdk-testpmd"),
}


def chroot(name: str) -> Path:
    """The folder of one of the chroots above."""
    if name not in CHROOTS:
        raise LabError(f"which chroot? {', '.join(CHROOTS)}")
    return CHROOTS[name].folder()


def inside(name: str, folder: Path, command: Sequence[Word]) -> list[Word]:
    """The command line that runs a command in a chroot, with the folder and the cache at their own paths: in a mount namespace
    of its own, so nothing stays mounted, and under one process id."""
    return ["unshare", "-m", Path(__file__).with_name("enter"), chroot(name), folder, cache(), *command]
