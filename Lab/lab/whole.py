"""`make lab`: every system against Sluice's disk and entropy back-ends, bit 33 off and on, events under a running
back-end, and what `sluice check` finds; a table of each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from . import check_table
from .catalogue import ADVERSE, JOBS
from .exposure import exposure
from .job import Row, append_row, read_rows
from .jobs.conformance import PEERS
from .jobs.systems import SYSTEMS
from .places import TREE, LabError, Settings
from .schedule import run_jobs, scratch
from .tables import moved_terminal, page, systems_terminal

NAMES = [*SYSTEMS, *ADVERSE, *(f"check-{peer}" for peer in PEERS), "check"]


class Whole:
    """A run of systems, adverse jobs and checks. Their rows are files in the folder `out`: systems.jsonl (a line a row), samples.jsonl (what could
    be reached when), events.jsonl (a line a job), check.jsonl (a line a result); with lab.md and exposure.svg, which are made from them."""

    def __init__(self, wanted: Sequence[str], out: Path, settings: Settings) -> None:
        self.out, self.settings = out, settings
        self.systems = [name for name in wanted if name in SYSTEMS]
        self.adverse = [name for name in wanted if name in ADVERSE]
        self.checks = list(PEERS) if "check" in wanted else [name.removeprefix("check-") for name in wanted if name.startswith("check-")]
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> bool:
        """Runs it; says whether all is well."""
        well = True
        if self.checks:
            (self.out / "check.jsonl").write_bytes(b"")
            with scratch("results") as results:
                # one at a time: how long a back-end takes is part of some verdicts
                well = run_jobs([JOBS[f"check-{peer}"] for peer in self.checks], dataclasses.replace(self.settings, jobs=1), results)
                rows = read_rows(results / "check.jsonl")
            self._write("check.jsonl", rows)
            # a page of some would look like one of all
            if self.checks == list(PEERS):
                check_table.write(rows)
            else:
                print(check_table.Findings(rows).table(), end="", flush=True)
        if self.systems or self.adverse:
            os.environ["LIMIT"] = str(self.settings.limit or 300)
            with scratch("results") as results:
                well = run_jobs([JOBS[name] for name in [*(f"lab-{system}" for system in self.systems), *self.adverse]], Settings.of(), results) and well
                self.collect(results)
        return well

    def collect(self, results: Path) -> None:
        """Makes tables and picture from what the jobs reported, in the order of the systems, whichever ended first."""
        at = {name: number for number, name in enumerate(self.systems)}
        rows, moved = read_rows(results / "systems.jsonl"), read_rows(results / "events.jsonl")
        if not rows and not moved:
            raise LabError("no system and no job reported anything")
        rows.sort(key=lambda row: (at[row["system"]], row["bit"], row["device"], row["ring"] == "packed"))
        moved = [row for name in self.adverse for row in ([row for row in moved if row["job"] == name] or [silent(name)])]
        samples = sorted(read_rows(results / "samples.jsonl"), key=lambda sample: at[sample["system"]])
        for name, kept in (("systems.jsonl", rows), ("events.jsonl", moved), ("samples.jsonl", samples)):
            self._write(name, kept)
        if rows:
            print(systems_terminal(rows), end="")
        if moved:
            print(moved_terminal(moved), end="", flush=True)
        picture = self.out / "exposure.svg"
        if samples:
            picture.write_text(exposure(samples))
        (self.out / "lab.md").write_text(page(rows, moved, picture.exists()))

    def publish(self) -> None:
        """Puts page and picture into the documentation."""
        (TREE / "Documentation/lab.md").write_bytes((self.out / "lab.md").read_bytes())
        if (self.out / "exposure.svg").exists():
            (TREE / "Documentation/diagrams/exposure.svg").write_bytes((self.out / "exposure.svg").read_bytes())

    def _write(self, name: str, rows: Sequence[Row]) -> None:
        (self.out / name).write_bytes(b"")
        for row in rows:
            append_row(self.out / name, row)


def silent(name: str) -> Row:
    """The row of a job that ended before it could say anything: it has failed."""
    return {"job": name, "title": name, "iommu": "", "done": "", "acknowledged": 0, "looks": 0, "faults": 0, "wrong": 0, "seconds": 0,
            "backend": "", "verdict": "failed", "reason": "the job reported nothing"}


def run_lab(arguments: Sequence[str]) -> bool:
    """The verb. A run of everything also writes Documentation/lab.md and the picture beside it."""
    for name in arguments:
        if name not in NAMES:
            raise LabError(f"no system or job '{name}'; there are: {' '.join([*SYSTEMS, *ADVERSE])} check")
    out = os.environ.get("OUT")
    with contextlib.nullcontext(Path(out).absolute()) if out else scratch("lab") as folder:
        whole = Whole(arguments or [*SYSTEMS, *ADVERSE, "check"], folder, Settings.of())
        well = whole.run()
        if not arguments:
            whole.publish()
        return well
