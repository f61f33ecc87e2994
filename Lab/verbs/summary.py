"""What the log of a step of `make test` says: how many tests passed, which failed and why, and what was left out."""

from __future__ import annotations

import re
from dataclasses import dataclass

# what a verb's last line says
_LINE = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
_RUN = re.compile(r"Test run with (\d+) tests?")
# Python's
_UNITTEST = re.compile(r"^Ran (\d+) tests? in ", re.M)
_UNITTEST_OUTCOME = re.compile(r"(failures|errors|skipped)=(\d+)")
# The signs keep what tests are called, and the run itself, out of it.
_FAILED = re.compile(r'^✘ Test (?!run with ).* failed after [0-9.]+ seconds[^"]*$', re.M)
_SKIPPED = re.compile(r"^➜ Test .* skipped(?::|\.|$)", re.M)
_REASON = re.compile(
    r"^(?:✘ Test (?!run with ).* (?:recorded an issue|failed after)|failed\s|WARNING: ThreadSanitizer|.*error: "
    r"|(?:FAIL|ERROR): |.*FAILED|.*: stopped after)"
)
_WIDTH = 400
_LINES = 12


@dataclass
class Count:
    """Tests that passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count(log: str, status: int) -> Count:
    """Counts a step by its last line `N passed, N failed[, N skipped]`, or by Swift Testing's summaries, of which it may
    have several, or by that of Python's unittest; any other step is one test. A step that ended badly has failed, whatever
    it printed."""
    counted = Count()
    lines = _LINE.findall(log)
    runs = _RUN.findall(log)
    if lines:
        passed, failed, skipped = lines[-1]
        counted = Count(int(passed), int(failed), int(skipped or 0))
    elif runs:
        failed, skipped = len(_FAILED.findall(log)), len(_SKIPPED.findall(log))
        # tests that were left out are among those of the run
        counted = Count(sum(map(int, runs)) - failed - skipped, failed, skipped)
    elif ran := _UNITTEST.search(log):
        outcome: dict[str, int] = {kind: int(number) for kind, number in _UNITTEST_OUTCOME.findall(log[ran.end() :])}
        failed, skipped = outcome.get("failures", 0) + outcome.get("errors", 0), outcome.get("skipped", 0)
        counted = Count(int(ran.group(1)) - failed - skipped, failed, skipped)
    elif status == 0:
        counted = Count(passed=1)
    if status != 0 and counted.failed == 0:
        counted.failed = 1
    return counted


def reasons(name: str, log: str) -> list[str]:
    """The lines of a failed step that say what failed; where none says so, its last lines."""
    lines = log.splitlines()
    said = [line for line in lines if _REASON.match(line)][:_LINES] or lines[-_LINES:]
    return [f"FAILED {name}: {line[:_WIDTH]}" for line in said]


def left_out(log: str) -> list[str]:
    """What the step did not do, and why."""
    found: list[str] = []
    for line in log.splitlines():
        if re.match(r"➜ Test .* skipped:", line):
            found.append("SKIPPED " + line.removeprefix("➜ "))
        elif line.startswith("SKIPPED "):
            found.append(line)
    return found
