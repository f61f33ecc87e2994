"""QEMU's own tests of its devices, made once from the source of the QEMU that is installed here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .debian import Suite, last_lines, say
from .places import LabError, cache, intact, locked, mirror, seal
from .processes import output, run


def qemu_package_version() -> str:
    """The version of Debian's source package that the host's QEMU is made from."""
    version = output(["dpkg-query", "-W", "-f", "${source:Version}", "qemu-system-x86"])
    if not version:
        raise LabError("qemu-system-x86 is not installed")
    return version


def qtests() -> Path:
    """A folder with `qos-test`, which runs them, and `accel-qtest-x86_64.so`, the processor that runs nothing, for them; Debian leaves it
    out of its package. Takes some minutes, and the network."""
    version = qemu_package_version()
    folder = cache() / f"qtests-{re.sub('[^0-9A-Za-z.+]', '_', version)}"
    with locked(folder.name):
        if not intact(folder):
            _make(folder, version)
    return folder


def _make(folder: Path, version: str) -> None:
    new, log = Path(f"{folder}.new"), Path(f"{folder}.log")
    for left in (folder, new):
        shutil.rmtree(left, ignore_errors=True)
    log.unlink(missing_ok=True)
    new.mkdir()
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    suite = Suite(release.group(1) if release else "bookworm").update()
    options = suite.options(_sources(suite, new))
    run(["apt-get", *options, "update", "-qq"], 600, log)
    if run(["apt-get", *options, "source", f"qemu={version}"], 900, log, cwd=new):
        raise LabError(f"{last_lines(log)}\napt cannot fetch the source of qemu {version}")
    source = next(path for path in new.glob("qemu-*") if path.is_dir())
    # a program loads only modules of the very build that it is from, and by the stamp they say that they are
    binary = Path(shutil.which("qemu-system-x86_64") or "").read_bytes()
    stamp = re.search(rb"qemu_stamp(_\w+)", binary)
    for name, target, more in (
        ("tests", "tests/qtest/qos-test", ["--enable-vhost-kernel", "--enable-vhost-user", "--enable-vhost-user-blk-server", "--enable-tools"]),
        ("module", "accel-qtest-x86_64.so", ["--enable-modules"]),
    ):
        _build(source / f"build-{name}", target, more, stamp.group(1).decode() if stamp else "", log)
        shutil.copy(source / f"build-{name}" / target, new)
    shutil.rmtree(source)
    for left in [*new.glob("qemu_*"), new / "sources.list"]:
        left.unlink()
    seal(new)
    new.rename(folder)


def _sources(suite: Suite, folder: Path) -> Path:
    """A list that has the suite's sources as well, and those of its security updates."""
    binary = suite.sources.read_text()
    source = binary.replace("deb ", "deb-src ", 1)
    security = source.replace(f"{mirror()} {suite.name} main", f"{mirror()}-security {suite.name}-security main")
    file = folder / "sources.list"
    file.write_text(binary + source + security)
    return file


def _build(place: Path, target: str, more: list[str], stamp: str, log: Path) -> None:
    """Builds one target, in a folder of its own."""
    place.mkdir()
    configure = ["../configure", "--without-default-features", "--without-default-devices", "--target-list=x86_64-softmmu", "--enable-system",
                 "--enable-tcg", "--disable-werror", "--disable-docs", f"--meson={shutil.which('meson')}", *more]
    failed = run(configure, 900, log, cwd=place)
    if not failed:
        header = place / "config-host.h"
        header.write_text(re.sub(r"#define CONFIG_STAMP .*", f"#define CONFIG_STAMP {stamp}", header.read_text()))
        failed = run(["ninja", target], 3600, log, cwd=place)
    if failed:
        say(last_lines(log, 15))
        raise LabError(f"{target} cannot be built")
