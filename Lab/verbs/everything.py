"""make test: everything CI runs, two steps beside each other; the last line sums them up.

    Scripts/test [STEP...]      `Scripts/test list` names the steps; by default all

The last lines name what was left out and what failed. A step that prints `N passed, N failed[, N skipped]` or ends with the
summary of Swift Testing or of Python's unittest is counted by that; any other counts as one test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from lab.places import TREE
from lab.processes import end_on_signals

from verbs import summary
from verbs.programs import give_up, install
from verbs.steps import Runner, Step


def steps() -> list[Step]:
    """All steps, in the order they begin as soon as there is room for them.

    Units and threads look at the clock, so nothing runs beside them. Guests wait for much of their time, and a build fills it.
    The fuzzers, which try as many inputs as they can in a time, have a processor of their own, beside steps of one thread. A
    folder of builds has a lock: no two steps beside each other build in .build."""

    def script(name: str, limit: float, *arguments: str, after: tuple[str, ...] = (), lanes: int = 1) -> Step:
        return Step(name, limit, [str(TREE / "Scripts" / name), *arguments], after, lanes=lanes)

    def build(name: str, *command: str, after: tuple[str, ...] = ()) -> Step:
        return Step(name, 1500, list(command), after, prepares=True)

    unittest = [sys.executable, "-m", "unittest", "discover", "-s", str(TREE / "Lab"), "-t", str(TREE / "Lab")]
    return [
        build("build-tests", "swift", "build", "--build-tests"),
        build("build-threads", str(TREE / "Scripts/threads"), "--build"),
        build("build-release", "swift", "build", "-c", "release", after=("build-tests",)),
        script("units", 1800, after=("build-tests",), lanes=2),
        script("threads", 1500, after=("build-threads",), lanes=2),
        script("fuzz", 900),
        Step("lab", 120, unittest),
        script("protocol", 300),
        script("matrix", 600, after=("build-release",)),
        script("manual", 900, "--check", after=("build-release",)),
        # after the manual, which it installs
        Step("install", 60, [str(TREE / "Scripts/deploy"), "--check"], after=("manual",)),
        script("docs", 600, "--check", after=("build-release",)),
        script("check", 300, after=("build-tests",)),
        script("model", 900, after=("build-release",)),
        script("guests", 2400, after=("build-release", "fuzz")),
        script("examples", 900, after=("fuzz",)),
    ]


def wanted(names: list[str], known: list[Step]) -> list[Step]:
    """The steps of these names, with what prepares them; all without any."""
    by_name = {step.name: step for step in known}
    for name in names:
        if name not in by_name:
            give_up("test", f"no step '{name}'; there are: {' '.join(by_name)}", 2)
    chosen = set(names) or set(by_name)
    for name in list(chosen):
        chosen.update(before for before in by_name[name].after if by_name[before].prepares)
    return [step for step in known if step.name in chosen]


def report(runner: Runner) -> bool:
    """Prints what was left out and what failed, and the sum; says whether all is well."""
    # What was left out, and why, where it is read: before the sum.
    for step in runner.steps:
        for line in summary.left_out(runner.log(step.name)):
            print(line)
    # And what failed: of a run on another machine its last lines may be all there is.
    for name in runner.broken:
        for line in summary.reasons(name, runner.log(name)):
            print(line)
    if runner.total.failed:
        print(f"logs: {runner.folder}")
    print(runner.total, flush=True)
    return runner.total.failed == 0 and runner.total.passed > 0


def main(names: list[str]) -> int:
    known = steps()
    if names == ["list"]:
        print(" ".join(step.name for step in known))
        return 0
    chosen = wanted(names, known)
    install()
    os.environ.update(SWIFT_BACKTRACE="enable=no,interactive=no", CI=os.environ.get("CI", ""))
    # the release build that the first of them made
    os.environ.setdefault("SLUICE", str(TREE / ".build/release/sluice"))
    end_on_signals()
    runner = Runner(Path(tempfile.mkdtemp(prefix="sluice-test.")), chosen)
    try:
        runner.run()
        return 0 if report(runner) else 1
    finally:
        if runner.total.failed == 0:
            shutil.rmtree(runner.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
