"""Where things are, and what the environment says about a run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
GUESTS = TREE / "Tests" / "Guests"
MIB = 1 << 20

# depmod, modprobe and mke2fs are where a user's shell does not look
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
os.environ["LC_ALL"] = "C"


class LabError(Exception):
    """The lab itself cannot go on. The text is for the person who started it."""


class Wrong(Exception):
    """Something under test is not as it must be. The text is the reason in a job's row."""


class Skipped(Exception):
    """What was asked for cannot be run here. The text is the reason in a job's row."""


@dataclass(frozen=True)
class Settings:
    """What the environment's variables say; the names are those of the Makefile."""

    backend: str             # sluice; qsd and qemu are for work on the lab itself
    sluice: Path             # the program under test
    built: bool              # the caller named a program, so none is built
    options: tuple[str, ...]  # more options for every back-end of Sluice
    cache: Path
    limit: int | None        # seconds for one boot
    jobs: int                # how many at once
    turns: int | None        # how often an adverse job does what it does
    keep: bool               # leave the logs behind even where nothing failed

    @staticmethod
    def of(environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads the variables; an empty one is as good as none."""
        def number(name: str) -> int | None:
            text = environment.get(name, "")
            if text and not text.isdecimal():
                raise LabError(f"{name} is a number, not '{text}'")
            return int(text) if text else None

        backend = environment.get("BACKEND") or "sluice"
        if backend not in ("sluice", "qsd", "qemu"):
            raise LabError("BACKEND is sluice, qsd or qemu")
        named = environment.get("SLUICE", "")
        home = environment.get("HOME") or "/tmp"
        return Settings(
            backend=backend,
            sluice=Path(shutil.which(named) or named).absolute() if named else TREE / ".build/release/sluice",
            built=bool(named),
            options=tuple(environment.get("SLUICE_OPTIONS", "").split()),
            cache=Path(environment.get("SLUICE_CACHE") or f"{home}/.cache/sluice").absolute(),
            limit=number("LIMIT"), jobs=number("JOBS") or 2, turns=number("TURNS"), keep=bool(environment.get("KEEP")),
        )


def cache() -> Path:
    """The folder of what is fetched or made once; it stays valid from one version of the lab to the next."""
    folder = Settings.of().cache
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock of the cache, so that two runs that start together prepare a thing once."""
    with open(cache() / f".lock-{name}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_sum(path: Path, kind: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def part_sum(path: Path, start: int = 0, length: int = -1) -> str:
    """The MD5 of a part of a file, as the guests' md5sum says it; of all from `start` on where no length is said."""
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.md5(file.read(length)).hexdigest()


def random_image(path: Path, data: int, size: int | None = None) -> None:
    """Makes an image of so many bytes that no other has, and behind them a hole up to the size."""
    path.write_bytes(os.urandom(data))
    os.truncate(path, size or data)


def empty_image(path: Path, size: int) -> None:
    """Makes an image that is one hole."""
    path.write_bytes(b"")
    os.truncate(path, size)


def seal(folder: Path) -> None:
    """Writes down what every file of a cached folder holds, as sha256sum does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS")
    lines = [f"{file_sum(path)}  ./{path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def intact(folder: Path) -> bool:
    """Is every file of a cached folder still what was put there?"""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        return bool(lines) and all(file_sum(folder / line[66:]) == line[:64] for line in lines)
    except OSError:
        return False


def mirror(sources: Path = Path("/etc/apt"), environment: Mapping[str, str] = os.environ) -> str:
    """The mirror that this host already uses for Debian itself."""
    if environment.get("SLUICE_MIRROR"):
        return environment["SLUICE_MIRROR"]
    for file in [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        for line in file.read_text().splitlines():
            found = None if line.lstrip(" ").startswith("#") else re.search(r"https?://[^ ]+/debian(?=/?( |$))", line)
            if found:
                return found.group(0)
    return "http://deb.debian.org/debian"
