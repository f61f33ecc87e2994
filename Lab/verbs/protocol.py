"""Checks the protocol between queues and unmaps (Models/fence.pml) with spin: nothing goes wrong, whatever the order of
events, and something does as soon as one of the model's numbered lines is missing.

    Scripts/protocol            `N passed, N failed` last"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.places import TREE

from verbs.programs import give_up, install

MODEL = TREE / "Models/fence.pml"
# seconds that one check may take
LIMIT = 300


@dataclass(frozen=True)
class Finding:
    """What spin found: how many errors, in how many states, and what the first of them is."""

    errors: int | None
    states: str
    first: str

    @staticmethod
    def of(said: str) -> Finding:
        """Reads what a checker printed."""

        def found(pattern: str) -> str:
            match = re.search(pattern, said, re.M)
            return match.group(1) if match else ""

        errors = found(r"errors: (\d+)$")
        return Finding(int(errors) if errors else None, found(r"^ *(\d+) states, stored"), found(r"^pan:1: (.*)"))


def numbered(model: str) -> list[int]:
    """The numbers of the lines that can be left out."""
    return sorted({int(number) for number in re.findall(r"BREAK [!=]= (\d+)", model)})


def find(number: int, folder: Path) -> Finding:
    """What spin finds when line `number` is broken; 0: none is."""

    def step(command: list[str], limit: float | None = None) -> str:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
        if done.returncode != 0:
            give_up("protocol", f"{command[0]} failed: {done.stdout[-2000:]}")
        return done.stdout

    step(["spin", f"-DBREAK={number}", "-a", str(MODEL)])
    step(["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"])
    return Finding.of(step(["./pan", "-m100000"], LIMIT))


def verdict(number: int, finding: Finding) -> tuple[bool, str]:
    """Is this as it must be, and the line that says so?"""
    if number == 0:
        errors = "no" if finding.errors is None else str(finding.errors)
        line = f"protocol: as it is: {errors} errors in {finding.states} states"
        return finding.errors == 0, line + (f"\n{finding.first}" if finding.errors else "")
    if finding.errors:
        return True, f"protocol: without line {number}: {finding.first}"
    return False, f"protocol: without line {number}: FAILED, nothing goes wrong"


def main(arguments: list[str]) -> int:
    if arguments:
        give_up("protocol", f"no options, not '{arguments[0]}'", 2)
    install("protocol")
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in [0, *numbered(MODEL.read_text())]:
            good, line = verdict(number, find(number, Path(folder)))
            print(line, flush=True)
            passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
