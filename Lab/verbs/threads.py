"""The tests of everything that has threads, or that threads share, under the thread sanitizer.

    Scripts/threads [FILTER]
    Scripts/threads --build     builds them and runs none

What the sanitizer would not see of Swift's Mutex, mutex.c of CLinux tells it. A new test target is among them unless it is named
below. Of the others the suites are left out that take long with one thread: the ring models, the devices' battery. Of the hostile
driver the tests of its own harness: they look for a thread that never sleeps, and slowed down it waits for locks."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from lab.places import TREE

from verbs.diagrams import package
from verbs.programs import give_up

# Not built, and why.
LEFT_OUT = {
    "ArchitectureTests": "reads text",
    "RulesTests": "reads text",
    "CommandTests": "starts processes",
    "QEMUTests": "starts processes",
    "VhostUserCheckTests": "its threads are those of VhostUserTests",
    "VfioUserCheckTests": "its threads are those of VfioUserTests",
    "MachineTests": "one thread a machine",
    "MemoryModelTests": "one thread, and long",
    "ConfinementTests": "one thread",
    "VirtioDriversTests": "one thread",
}
SLOW = "(ConformanceTests|FlawTests|HarnessTests)"
# What rests on atomics alone is run by itself: beside tests that keep every thread of the pool its long race starves.
ATOMICS = "(FenceTests|FaultTests|GuestMemoryTests|TranslationTableTests|IOTLBTests|DomainTests|DirtyLogTests)"
# Of these tests no others have more than one thread.
ONE_THREAD = r"^VirtioTests\."


def threaded(description: dict[str, Any]) -> list[str]:
    """The test targets to be built, from the package's own description."""
    names = [target["name"] for target in description["targets"] if target["type"] == "test"]
    unknown = LEFT_OUT.keys() - set(names)
    if unknown:
        give_up("threads", f"the package has no {', '.join(sorted(unknown))}: what LEFT_OUT names must be there")
    return [name for name in names if name not in LEFT_OUT]


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        give_up("threads", "one filter at most", 2)
    os.environ.setdefault("TSAN_OPTIONS", "halt_on_error=1 second_deadlock_stack=1")
    os.environ["SLUICE_TESTS"] = ",".join(threaded(package()))
    # A build folder of its own: sanitized and plain objects do not mix. Not optimized: code of the standard library that is
    # specialized here is then instrumented, and the runtime's look at a reference count, which orders an array's reads
    # before a write in place, is not: the sanitizer reports a race that there is none.
    sanitized = ["--sanitize", "thread", "--scratch-path", str(TREE / ".build-threads")]
    if subprocess.run(["swift", "build", "--build-tests", *sanitized], cwd=TREE).returncode != 0:
        return 1
    if arguments == ["--build"]:
        return 0
    test = ["swift", "test", "--skip-build", *sanitized, "--skip", SLOW]
    runs = [["--filter", arguments[0]]] if arguments else [["--filter", ATOMICS], ["--skip", ATOMICS, "--skip", ONE_THREAD]]
    statuses = [subprocess.run([*test, *run], cwd=TREE).returncode for run in runs]
    return 0 if not any(statuses) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
