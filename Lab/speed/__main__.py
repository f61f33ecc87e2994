"""The command: reads the options, measures, and prints the tables or all of it as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab.places import LabError, Settings, Wrong
from lab.processes import Processes, end_on_signals

from speed import options as words
from speed.contest import Contest
from speed.storage import Storage
from speed.table import report


def plain(value: Any) -> Any:
    """Whole numbers without a point, all the way down."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def measure(options: words.Options) -> dict[str, Any]:
    """Measures in a folder on tmpfs that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sluice-speed.", dir="/dev/shm") as folder, Processes() as processes:
        storage = Storage(processes, options, Path(folder))
        try:
            return Contest(processes, options, Path(folder), storage).run()
        finally:
            storage.end()


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(words.__doc__)
        return 0
    end_on_signals()
    try:
        options = words.parse(arguments, Settings.of())
        said = measure(options)
        if not said["turns"]:
            raise LabError("no turn ended: there is nothing to compare")
    except (LabError, Wrong) as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(plain(said), indent=2, ensure_ascii=False) if options.json else report(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
