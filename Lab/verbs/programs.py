"""How a verb runs the programs it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from lab.places import TREE


def give_up(verb: str, reason: str, status: int = 1) -> NoReturn:
    """Ends the process with a line on standard error that says why."""
    print(f"{verb}: {reason}", file=sys.stderr)
    raise SystemExit(status)


def run(command: list[str | Path], cwd: Path = TREE, quiet: bool = False) -> None:
    """Runs a program whose failure is the verb's; `quiet` sends what it says to standard error."""
    sys.stdout.flush()
    status = subprocess.run(command, cwd=cwd, stdout=sys.stderr if quiet else None).returncode
    if status != 0:
        raise SystemExit(status if status > 0 else 128 - status)


def output(command: list[str | Path], cwd: Path = TREE) -> str:
    """What a program prints; its failure is the verb's."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    return done.stdout


def install(*groups: str) -> None:
    """Has Scripts/install install these groups of Debian packages, where any of them is missing."""
    run([TREE / "Scripts/install", *groups], quiet=True)


def build(*options: str) -> Path:
    """Builds with these options of `swift build`, and returns the folder of its products."""
    run(["swift", "build", *options], quiet=True)
    return Path(output(["swift", "build", *configuration(options), "--show-bin-path"]).strip())


def configuration(options: tuple[str, ...]) -> list[str]:
    """Those of the options that say where the products are: the configuration and the scratch path."""
    kept: list[str] = []
    for option, value in zip(options, options[1:]):
        if option in ("-c", "--scratch-path", "--package-path"):
            kept += [option, value]
    return kept


def release(product: str = "sluice") -> Path:
    """The release build of the command, or of another product; SLUICE names a command that is there already."""
    named = os.environ.get("SLUICE")
    if named and product == "sluice":
        return Path(named).resolve()
    return build("-c", "release", "--product", product) / product
