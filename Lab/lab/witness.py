"""The witness: Tests/Guests/sequence.c and numbered.c on this host, the same source as the guest's.

Windows of blocks are overwritten in order, so that what is lost, late, torn or done twice shows in the image."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .initramfs import witness_program
from .places import Skipped


def write(image: Path, threads: str, count: int, log: Path) -> None:
    """Writes so many times to an image, and says in the log what was acknowledged."""
    with open(log, "wb") as out:
        ended = subprocess.run([witness_program(), "write", image, "vda", threads, str(count), "0"], stdin=subprocess.DEVNULL,
                               stdout=out, stderr=subprocess.STDOUT, timeout=120)
    if ended.returncode:
        raise Skipped(f"no direct writes to {image.parent}: {log.read_text().splitlines()[-1:]}")


def check(image: Path, disk: str, threads: str, talk: bytes, log: Path | None = None) -> tuple[bool, str]:
    """Does the image hold all that a guest's talk says was acknowledged? And what the witness says."""
    return _judge(["sequence", "check", image, disk, threads], talk, log)


def check_numbered(image: Path, blocks: int, talk: bytes, log: Path) -> tuple[bool, str]:
    """The same for the blocks of the workload `seq`."""
    return _judge(["numbered", "check", image, str(blocks)], talk, log)


def _judge(command: list[str | Path], talk: bytes, log: Path | None) -> tuple[bool, str]:
    program = witness_program().with_name(str(command[0]))
    ended = subprocess.run([program, *command[1:]], input=talk, capture_output=True, timeout=300)
    if log:
        with open(log, "ab") as out:
            out.write(ended.stderr)
    return ended.returncode == 0, ended.stdout.decode(errors="replace")
