"""Builds the benchmarks and the command, and runs them: `Scripts/bench ring`, `Scripts/bench blk --json` and so on.

    Scripts/bench [BENCHMARK [OPTION...]]
    Scripts/bench guest [--quick] [--before PATH] ...
    Scripts/bench maps [--count N] [--held N] [--json]

By default all that need no guest: the rings, IOMMU domains, a machine in one process, the disk against qemu-storage-daemon, the
disk behind a translation against the disk without, questions and invalidations behind QEMU's VT-d against the least there could
be, and the disk through libblkio, a client of another project. `guest` measures in guests, for a quarter of an hour (see
Scripts/speed), and `maps` says what a vfio-user server takes to map and unmap a page."""

from __future__ import annotations

import os
import sys

from lab.places import TREE

from verbs.programs import build, install, output, run

ALL = [
    ["ring"],
    ["iommu"],
    ["machine"],
    ["blk"],
    ["blk", "--translated", "--depths", "32", "--patterns", "random"],
    ["floor"],
    ["blkio"],
]


def prepare(benchmark: str) -> None:
    """What a benchmark needs besides the build: a client of another Debian."""
    if benchmark == "blkio":
        install("trixie")
        output([TREE / "Scripts/lab/chroot"])


def main(arguments: list[str]) -> int:
    install("build", "guest")
    build("-c", "release", "--product", "sluice")
    if arguments[:1] == ["guest"]:
        script = TREE / "Scripts/speed"
        os.execv(script, [str(script), *arguments[1:]])
    if arguments[:1] == ["maps"]:
        os.execv(sys.executable, [sys.executable, "-m", "speed.maps", *arguments[1:]])
    program = build("-c", "release", "--product", "sluice-bench") / "sluice-bench"
    for words in [arguments] if arguments else ALL:
        prepare(words[0])
        # a machine in one process has one thread, which is not to wander
        alone = ["taskset", "-c", "0"] if not arguments and words[0] == "machine" else []
        run([*alone, program, *words])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
