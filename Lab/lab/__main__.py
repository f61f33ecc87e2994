"""The lab's verbs: `python3 -m lab VERB ...`.

guests [JOB...]        real guests against the back-end, a line a run, `N passed, N failed, N skipped` last; without arguments all jobs
                       but the adverse ones; `adverse` is those, `list` names them
run [SYSTEM...] [JOB...] [check|check-PEER...]
                       the lab's systems, adverse jobs and checks, with tables; without arguments all of them; `list` names them
chroot NAME            makes a small Debian of another suite, once, and prints its folder
report FOLDER [PAGE]   makes lab.md and exposure.svg anew from the JSON lines in a folder, and the table in a copy of check.md
job NAME FOLDER RESULTS
                       one job, in this process: what `guests` starts
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import check_table
from .catalogue import ADVERSE, USUAL, entry
from .debian import chroot
from .exposure import exposure
from .job import read_rows
from .places import LabError, Settings
from .processes import Processes, end_on_signals
from .schedule import run_jobs
from .tables import page
from .whole import NAMES, run_lab

PR_SET_PDEATHSIG = 1


def guests(arguments: Sequence[str]) -> bool:
    """Real guests against the back-end."""
    if list(arguments) == ["list"]:
        print(f"{' '.join(USUAL)}\nadverse: {' '.join(ADVERSE)}")
        return True
    names = ADVERSE if list(arguments[:1]) == ["adverse"] else arguments or USUAL
    return run_jobs([entry(name) for name in names], Settings.of())


def whole_lab(arguments: Sequence[str]) -> bool:
    """The lab's systems."""
    if list(arguments) == ["list"]:
        print(" ".join(NAMES))
        return True
    return run_lab(arguments)


def print_chroot(arguments: Sequence[str]) -> bool:
    """A small Debian."""
    print(chroot(arguments[0] if arguments else "blkio"))
    return True


def report(arguments: Sequence[str]) -> bool:
    """Tables and picture from the JSON of a run."""
    folder = Path(arguments[0])
    samples = read_rows(folder / "samples.jsonl")
    if samples:
        (folder / "exposure.svg").write_text(exposure(samples))
    (folder / "lab.md").write_text(page(read_rows(folder / "systems.jsonl"), read_rows(folder / "events.jsonl"), bool(samples)))
    if len(arguments) > 1:
        check_table.write(read_rows(folder / "check.jsonl"), Path(arguments[1]))
    return True


def one_job(arguments: Sequence[str]) -> bool:
    """One job. It does not outlive the process that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    name, folder, results = arguments
    with Processes() as processes:
        return entry(name).does(name, Path(folder), Path(results), Settings.of(), processes).run() == 0


VERBS = {"guests": guests, "run": whole_lab, "chroot": print_chroot, "report": report, "job": one_job}


def main() -> int:
    """Runs a verb; the status is 1 where something failed."""
    verb, arguments = (sys.argv[1:2] or ["help"])[0], sys.argv[2:]
    if verb not in VERBS:
        print(__doc__, end="")
        return 0 if verb in ("help", "--help", "-h") else 2
    end_on_signals()
    try:
        return 0 if VERBS[verb](arguments) else 1
    except LabError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return 1


sys.exit(main())
