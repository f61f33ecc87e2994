"""Runs every fuzz target, one after the other, from the seeds in Fuzz/Corpora. Each keeps one processor busy.

    Scripts/fuzz [SECONDS]      for each target; 60 unless told

What a run finds that is new to it stays under .build-fuzz; an input that breaks a target is written there as NAME-crash-*, and
the exit status is 1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from lab.places import TREE

from verbs.programs import build, give_up

SCRATCH = TREE / ".build-fuzz"
CORPORA = TREE / "Fuzz/Corpora"


def targets() -> list[str]:
    """Each has a folder of its own."""
    return sorted(folder.name for folder in (TREE / "Fuzz").iterdir() if folder.is_dir() and folder != CORPORA)


def fuzz(name: str, program: Path, seconds: int) -> bool:
    """Runs a target for so many seconds; says what came of it, and whether it held."""
    found = SCRATCH / "corpora" / name
    found.mkdir(parents=True, exist_ok=True)
    path = SCRATCH / f"{name}.log"
    with path.open("wb") as log:
        limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=70000"]
        command: list[str | Path] = [program, *limits, "-print_final_stats=1", f"-artifact_prefix={SCRATCH}/{name}-", found, CORPORA / name]
        held = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode == 0
    said = path.read_text(errors="replace")
    if held:
        print(f"fuzz: {name} ok, {runs(said)} runs", flush=True)
    else:
        print("\n".join([f"fuzz: {name} FAILED, see {path.relative_to(TREE)}", *said.splitlines()[-20:]]), flush=True)
    return held


def runs(log: str) -> int:
    """How many inputs a run tried."""
    found = re.search(r"^stat::number_of_executed_units: (\d+)", log, re.M)
    return int(found.group(1)) if found else 0


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or not all(word.isdecimal() for word in arguments):
        give_up("fuzz", f"SECONDS is a number, not '{' '.join(arguments)}'", 2)
    seconds = int(arguments[0]) if arguments else 60
    os.environ.update(SLUICE_FUZZ="1", SWIFT_BACKTRACE="enable=no")
    options = ["-c", "release", "--sanitize", "fuzzer", "--scratch-path", str(SCRATCH)]
    for name in targets():
        products = build(*options, "--product", f"Fuzz{name}")
    held = [fuzz(name, products / f"Fuzz{name}", seconds) for name in targets()]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
