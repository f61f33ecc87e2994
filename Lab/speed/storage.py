"""Where the images are: on tmpfs, in a folder of a file system, or behind a delay; through the host's page cache, or around it
(O_DIRECT)."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lab.places import MIB, TREE, LabError
from lab.processes import Processes, output, until

from speed.options import Options

SIZE = 128 * MIB


class Storage:
    """The images of a run, and what holds them."""

    def __init__(self, processes: Processes, options: Options, work: Path) -> None:
        self.processes, self.options, self.work = processes, options, work
        self.images = work
        self.file_system: str | None = None
        self._late: dict[str, subprocess.Popen[bytes]] = {}
        if options.delay:
            self._compile()
            self.what = f"a file that answers after {options.delay} ms, around the page cache (O_DIRECT)"
            return
        if options.image_folder:
            self.images = Path(tempfile.mkdtemp(prefix="sluice-speed.", dir=options.image_folder.resolve()))
        try:
            # mounted over each other they are all listed; the last is the one that is seen
            found = (output(["findmnt", "-n", "-o", "FSTYPE", "-T", self.images]) or "").split()
            if not found:
                raise LabError(f"which file system is {self.images} on?")
            self.file_system = found[-1]
            self.what = f"{self.file_system}, through the page cache"
            if options.direct:
                self._try_direct()
                self.what = f"{self.file_system}, around the page cache (O_DIRECT)"
        except LabError:
            self.end()
            raise

    def _compile(self) -> None:
        slow = TREE / "Tests/Support/SlowFiles"
        compiler = shutil.which("clang") or shutil.which("cc")
        if not compiler:
            raise LabError("no C compiler (the Swift toolchain brings clang)")
        source = Path(__file__).with_name("late.c")
        command = [compiler, "-O2", f"-I{slow}/include", "-o", str(self.work / "late"), str(source), str(slow / "slow_files.c")]
        if subprocess.run(command, timeout=120).returncode != 0:
            raise LabError("cannot compile late.c")

    def _try_direct(self) -> None:
        probe = self.images / "probe"
        try:
            with open(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT), "wb", buffering=0) as file:
                # memory of its own is aligned as the file system wants it
                file.write(mmap.mmap(-1, 4096))
        except OSError as error:
            raise LabError(
                f"the {self.file_system} of {self.images} has no O_DIRECT: leave --direct out, or name a folder of another file "
                "system with --image-dir"
            ) from error
        finally:
            probe.unlink(missing_ok=True)

    def json(self) -> dict[str, Any]:
        """What was found, for a machine."""
        options = self.options
        return {"what": self.what, "file_system": self.file_system, "direct": options.direct, "delay_ms": options.delay}

    def image(self, name: str) -> Path:
        """A new image of 128 MiB."""
        if self.options.delay:
            return self._late_image(name)
        path = self.images / f"{name}.img"
        # every block is there, as on a disk in use, and nothing of it is still on its way to the device when the clock runs
        with path.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
        return path

    def _late_image(self, name: str) -> Path:
        said, log = self.work / f"late-{name}", self.work / f"late-{name}.log"
        with said.open("wb") as out, log.open("wb") as errors:
            late = str(self.work / "late")
            command = ["timeout", "-k", "5", str(self.options.limit), late, str(SIZE), str(self.options.delay)]
            child = self.processes.start(command, stdout=out, stderr=errors)
        self._late[name] = child
        if not until(5, lambda: said.stat().st_size > 0 or child.poll() is not None, every=0.02) or child.poll() is not None:
            raise LabError(f"no storage behind a delay: {log.read_text()}")
        return Path(said.read_text().strip())

    def drop(self, name: str) -> None:
        """The image is no longer in use."""
        (self.images / f"{name}.img").unlink(missing_ok=True)
        if name in self._late:
            self.processes.stop(self._late.pop(name))

    def end(self) -> None:
        """Ends all of it."""
        for name in list(self._late):
            self.drop(name)
        if self.images != self.work:
            shutil.rmtree(self.images, ignore_errors=True)
