"""Installs and removes in a folder of its own, and looks at what is there afterwards."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.places import TREE



def listing(root: Path) -> list[str]:
    """Every file and folder below, with its kind and where a link leads."""
    found: list[str] = []
    for path in sorted(root.rglob("*")):
        kind = "l" if path.is_symlink() else "d" if path.is_dir() else "f"
        found.append(f"{path.relative_to(root)} {kind} {os.readlink(path) if kind == 'l' else ''}")
    return found


def check() -> int:
    """Prints a line a check, and `N passed, N failed` last."""
    with tempfile.TemporaryDirectory() as folder:
        return _check(Path(folder) / "root")


def _check(root: Path) -> int:
    environment = {**os.environ, "DESTDIR": str(root), "PREFIX": "/opt/here"}
    said = ""

    def runs(*command: str | Path) -> bool:
        nonlocal said
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = done.stdout
        return done.returncode == 0

    # some of its folders are there already, with files of others in them
    others = [root / "opt/here/bin/other", root / "usr/share/qemu/vhost-user/50-other.json"]
    for other in others:
        other.parent.mkdir(parents=True)
        other.write_text("other\n")
    before = listing(root)
    script = TREE / "Scripts/deploy"
    descriptor = root / "usr/share/qemu/vhost-user/50-sluice-blk.json"
    page = root / "opt/here/share/man/man1/sluice-serve-blk.1"
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("installs", lambda: runs(script)),
        ("the command runs from there", lambda: runs(root / "opt/here/bin/sluice", "--version")),
        ("the descriptor names it", lambda: '"/opt/here/bin/sluice-blk"' in descriptor.read_text()),
        ("the manual is there", lambda: page.stat().st_size > 0),
        ("installs once more, over it", lambda: runs(script)),
        ("removes", lambda: runs(script, "--remove")),
        ("leaves what was there before, and nothing else", lambda: listing(root) == before),
        ("says so when there is nothing to remove", lambda: not runs(script, "--remove")),
    ]
    passed = failed = 0
    for name, holds in checks:
        said = ""
        try:
            good = holds()
        except OSError as error:
            good, said = False, f"{error}\n"
        print(f"{'ok     ' if good else 'failed '} install {name}")
        if not good:
            print(said, end="")
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1
