"""make install: the command, the names that managers start it by, its manual, completions and descriptors.
make uninstall: takes away what `make install` put there, and nothing else.

    DESTDIR=... PREFIX=/usr/local Scripts/deploy [--remove]
    Scripts/deploy --check      both, in a folder of its own: `N passed, N failed` last"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lab.places import TREE

from verbs.programs import give_up

COMMAND = TREE / ".build/release/sluice"
PACKAGING = TREE / "Packaging"
MADE = TREE / "docs-out"


@dataclass
class Installation:
    """One below DESTDIR, in PREFIX; the paths of files are absolute ones without DESTDIR."""

    prefix: str
    root: str
    # What this run put there, a path each, a folder that was made for it with a slash at its end.
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def of_environment() -> Installation:
        """The one that PREFIX and DESTDIR name."""
        return Installation(os.environ.get("PREFIX") or "/usr/local", os.environ.get("DESTDIR", ""))

    @property
    def list(self) -> str:
        """The file that keeps the notes: later versions may have other files."""
        return f"{self.prefix}/share/sluice/installed"

    def real(self, path: str) -> Path:
        """Where a file is while it is installed."""
        return Path(self.root + path)

    def note(self, path: str) -> Path:
        """Writes a path down, and before it the folders that have to be made for it; makes them."""
        folders = [str(folder) for folder in Path(path).parents if not self.real(str(folder)).is_dir()]
        self.notes += [folder + "/" for folder in reversed(folders)] + [path]
        self.real(path).parent.mkdir(parents=True, exist_ok=True)
        return self.real(path)

    def put(self, content: bytes, path: str, mode: int = 0o644) -> None:
        """Writes a file, in place of one that may be running."""
        target = self.note(path)
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        target.chmod(mode)

    def install(self) -> None:
        """Puts everything there."""
        if not os.access(COMMAND, os.X_OK):
            give_up("install", "build first: make build")
        self.put(COMMAND.read_bytes(), f"{self.prefix}/bin/sluice", 0o755)
        for template in sorted(PACKAGING.glob("50-sluice-*.json.in")):
            name = template.name.removeprefix("50-").removesuffix(".json.in")
            link = self.note(f"{self.prefix}/bin/{name}")
            link.unlink(missing_ok=True)
            link.symlink_to("sluice")
            descriptor = template.read_text().replace("@bindir@", f"{self.prefix}/bin")
            self.put(descriptor.encode(), f"/usr/share/qemu/vhost-user/{template.name.removesuffix('.in')}")
        self._install_manual()
        self.note(self.list)
        # what an installation before this one put there and this one did not is still ours to take away
        kept = self.real(self.list)
        earlier = kept.read_text().splitlines() if kept.exists() else []
        kept.write_text("".join(f"{path}\n" for path in dict.fromkeys(earlier + self.notes)))
        kept.chmod(0o644)

    def _install_manual(self) -> None:
        if not (MADE / "man").is_dir():
            print("install: without the manual and completions, which make build makes", file=sys.stderr)
            return
        share = f"{self.prefix}/share"
        for page in sorted((MADE / "man").glob("*.1")):
            self.put(page.read_bytes(), f"{share}/man/man1/{page.name}")
        places = {
            "bash": f"{share}/bash-completion/completions/sluice",
            "zsh": f"{share}/zsh/site-functions/_sluice",
            "fish": f"{share}/fish/vendor_completions.d/sluice.fish",
        }
        for shell, place in places.items():
            self.put((MADE / f"completions/sluice.{shell}").read_bytes(), place)

    def remove(self) -> None:
        """Takes all of it away; a folder that something else has moved into stays."""
        kept = self.real(self.list)
        if not kept.exists():
            give_up("uninstall", f"nothing was installed there: no {kept} (PREFIX and DESTDIR as with make install?)")
        for path in reversed(kept.read_text().splitlines()):
            if not path.endswith("/"):
                self.real(path).unlink(missing_ok=True)
                continue
            try:
                self.real(path).rmdir()
            except OSError:
                pass


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            Installation.of_environment().install()
        case ["--remove"]:
            Installation.of_environment().remove()
        case ["--check"]:
            from verbs.deploy_check import check

            return check()
        case _:
            give_up("install", f"--remove or --check, not '{arguments[0]}'", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
