"""The unit tests, built once, and run in a few processes: in one each test would wait for all others, past any time limit.

    Scripts/units [FILTER]"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.places import TREE

from verbs.diagrams import package
from verbs.programs import give_up

RUNS = 3


def sizes(description: dict[str, Any]) -> dict[str, int]:
    """The lines of each test target."""
    folders = {target["name"]: TREE / (target.get("path") or f"Tests/{target['name']}") for target in description["targets"] if target["type"] == "test"}
    return {name: sum(_lines(file) for file in folder.rglob("*.swift")) for name, folder in folders.items()}


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def groups(sizes: dict[str, int], count: int) -> list[list[str]]:
    """The targets in so many groups of about as many lines each."""
    made: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        min(made, key=lambda group: sum(sizes[other] for other in group)).append(name)
    return [sorted(group) for group in made if group]


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        give_up("units", "one filter at most", 2)
    filters = arguments or [rf"^({'|'.join(group)})\." for group in groups(sizes(package()), RUNS)]
    if subprocess.run(["swift", "build", "--build-tests"], cwd=TREE).returncode != 0:
        return 1
    tests = [["swift", "test", "--skip-build", "--filter", each] for each in filters]
    statuses = [subprocess.run(test, cwd=TREE).returncode for test in tests]
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
