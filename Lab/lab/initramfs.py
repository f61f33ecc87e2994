"""The guests' initramfs: busybox, our workloads, the kernel's modules."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import time
from pathlib import Path

from .debian import package
from .kernel import MORE_MODULES, kernel
from .places import GUESTS, LabError, cache, file_sum, intact, locked, seal
from .processes import output, run

EXTRA_PROGRAMS = {"fio": Path("/usr/bin/fio"), "nvme-cli": Path("/usr/sbin/nvme")}
UML_MODULES = "uml/modules/*/kernel/drivers/block/virtio_blk.ko"


def initramfs(name: str, extra: str = "", architecture: str = "amd64") -> Path:
    """The path of an initramfs for the kernel 6.1, 6.12 or uml. What `extra` names it has besides: `fio` with its libraries; `vfio`, which
    is what gives a device to a process, and the process; `nvme`, the driver, and `nvme-cli`, the command. It is made again only when
    something that goes into it has changed. Another architecture gets busybox and the workloads alone. Beside it are the host's copies
    of `numbered` and `sequence`."""
    extras = extra.split()
    modules = None if name == "uml" else kernel(name, architecture, more=next((word for word in extras if word in MORE_MODULES), ""))
    programs = [Path("/usr/sbin/blkdiscard"), Path("/usr/bin/fallocate"), *(EXTRA_PROGRAMS[word] for word in extras if word in EXTRA_PROGRAMS)]
    busybox = Path("/bin/busybox")
    if architecture != "amd64":
        programs, busybox = [], package("bookworm", architecture, "busybox-static") / "bin/busybox"
    for program in [*programs, busybox]:
        if not program.exists():
            raise LabError(f"no {program}; run Scripts/install {'nvme' if program.name == 'nvme' else 'guest'}")
    uml = sorted(Path("/usr/lib").glob(UML_MODULES))
    sources = [Path(__file__), GUESTS / "init", *sorted(GUESTS.glob("*.c")), *sorted((GUESTS / "workloads").iterdir()),
               busybox, *programs, *([modules / "SHA256SUMS"] if modules else []), *uml]
    key = hashlib.sha256("".join([*map(file_sum, sources), name, extra]).encode()).hexdigest()[:16]
    folder = cache() / f"initramfs-{key}"
    with locked(folder.name):
        if intact(folder):
            folder.touch()
        else:
            _make(folder, modules, busybox, programs, [uml[0]] if name == "uml" and uml else [],
                  [] if architecture != "amd64" else ["numbered", "sequence", "bypass", *(["handed"] if "vfio" in extras else [])])
    return folder / "initramfs"


def witness_program() -> Path:
    """The host's copy of `sequence`, which writes and judges: the same source as the guest's."""
    return initramfs("6.1").parent / "sequence"


def compiler() -> str:
    """The C compiler; the Swift toolchain brings clang."""
    found = shutil.which("clang") or shutil.which("cc")
    if not found:
        raise LabError("no C compiler (the Swift toolchain brings clang)")
    return found


def _make(folder: Path, modules: Path | None, busybox: Path, programs: list[Path], uml: list[Path], compiled: list[str]) -> None:
    for old in cache().glob("initramfs-*"):
        if old.is_dir() and time.time() - old.stat().st_mtime > 7 * 86400:
            shutil.rmtree(old, ignore_errors=True)
    new = Path(f"{folder}.new")
    root = new / "root"
    for left in (folder, new):
        shutil.rmtree(left, ignore_errors=True)
    for part in ("bin", "modules", "lib64", "usr/bin", "usr/sbin"):
        (root / part).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copyfile(GUESTS / "init", root / "init")
    (root / "init").chmod(0o755)
    shutil.copytree(GUESTS / "workloads", root / "workloads")
    # no compiler here makes programs for another architecture; there the workloads do without
    for name in compiled:
        if run([compiler(), "-O2", "-static", "-pthread", "-o", new / name, GUESTS / f"{name}.c"], 120):
            raise LabError(f"cannot compile {name}.c")
        shutil.copy(new / name, root / "usr/bin")
    for module in [*((modules / "modules").iterdir() if modules else []), *uml]:
        shutil.copy(module, root / "modules")
    if uml:
        (root / "modules/order").write_text("virtio_blk.ko\n")
    for program in programs:
        # the paths the loader will look at are the host's own
        for file in [str(program), *re.findall(r"/[^ \n]+", output(["ldd", program]) or "")]:
            target = root / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    names = "\n".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
    with open(new / "initramfs", "wb") as archive:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], input=names.encode(), stdout=archive, cwd=root, check=True, timeout=120)
    shutil.rmtree(root)
    seal(new)
    new.rename(folder)
