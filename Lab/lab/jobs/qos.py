"""QEMU's own tests of vhost-user disks (vhost-user-blk-test), with Sluice in qemu-storage-daemon's place."""

from __future__ import annotations

import re
import shutil
from typing import Any

from ..places import TREE, LabError, Skipped, Wrong
from ..processes import run
from ..qtests import qemu_package_version, qtests
from .adverse import AdverseJob

# One wish of theirs is not Sluice's: that a discard of two segments is refused. VIRTIO_BLK_F_DISCARD says how many a device takes
# (max_discard_seg), and Sluice takes more. What that test would look at afterwards is not seen.
WISH = re.compile(r"vhost-user-blk-test.c:[0-9]*:test_invalid_discard_write_zeroes: assertion failed \(status == VIRTIO_BLK_S_UNSUPP\): \(0 == 2\)")


class Qos(AdverseJob):
    """They drive the disk themselves and have no guest."""

    title = "QEMU's own tests of vhost-user disks"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.passed, self.wished, self.failed = list[str](), list[str](), list[str]()

    @property
    def full_title(self) -> str:
        return self.title

    def prepare(self) -> None:
        if self.settings.backend != "sluice":
            raise Skipped(f"{self.settings.backend} cannot")
        try:
            self.tools = qtests()
        except LabError as error:
            raise Skipped(str(error).splitlines()[-1]) from error

    def _qos(self, arguments: list[str], log: str) -> int:
        environment = {"SLUICE": str(self.settings.sluice), "QTEST_QEMU_BINARY": shutil.which("qemu-system-x86_64") or "",
                       "QEMU_MODULE_DIR": str(self.tools), "QTEST_QEMU_STORAGE_DAEMON_BINARY": str(TREE / "Scripts/lab/storage-daemon")}
        return run([self.tools / "qos-test", *arguments], 60, self.folder / log, cwd=self.folder, environment=environment)

    def move(self) -> None:
        self._qos(["-l"], "list.log")
        tests = [line for line in (self.folder / "list.log").read_text().splitlines() if re.match("/.*vhost-user-blk", line)]
        for test in tests:
            log = f"{test.rpartition('/')[2]}.log"
            good = self._qos(["-p", test], log) == 0
            wish = WISH.search((self.folder / log).read_text(errors="replace"))
            (self.passed if good else self.wished if wish else self.failed).append(log.removesuffix(".log"))
        if len(tests) < 6:
            raise Wrong(f"there are {len(tests)} tests, not 6")
        if self.failed:
            raise Wrong(f"failed: {' '.join(self.failed)}")

    def last_word(self) -> None:
        """There is no guest."""

    def judge(self) -> tuple[str | None, str]:
        return None, f"QEMU {qemu_package_version()}"

    def done(self) -> str:
        count = len(self.passed) + len(self.wished) + len(self.failed)
        return f"{len(self.passed)} of {count} passed, {len(self.wished)} up to its wish that two segments of a discard are refused"
