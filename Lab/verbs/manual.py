"""Writes the man pages and the shell completions from the command's own description, into docs-out/man and
docs-out/completions.

    SLUICE=PATH Scripts/manual      from that program, without building one
    Scripts/manual --check          and compares each page with what --help says: `N passed, N failed` last"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.places import TREE

from verbs import manual_check
from verbs.manual_page import Facts, Page, facts
from verbs.programs import build, give_up, output, release, run

MAN = TREE / "docs-out/man"
COMPLETIONS = TREE / "docs-out/completions"
SHELLS = ("bash", "zsh", "fish")


def write(command: Path) -> list[Path]:
    """Writes all of it, and returns the pages."""
    MAN.mkdir(parents=True, exist_ok=True)
    COMPLETIONS.mkdir(parents=True, exist_ok=True)
    for shell in SHELLS:
        script = output([command, "--generate-completion-script", shell])
        (COMPLETIONS / f"sluice.{shell}").write_text(script)
    # The tool comes with swift-argument-parser; called by hand, because its plugin would build every program here once more.
    tool = build("-c", "release", "--product", "generate-manual") / "generate-manual"
    version = output([command, "--version"]).strip()
    known = facts(json.loads(output([command, "--experimental-dump-help"]))["command"])
    for old in MAN.iterdir():
        old.unlink()
    written: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        run([tool, command, "--multi-page", "--section", "1", "--output-directory", folder], quiet=True)
        # A page that says nothing of its own about the exit status has that of the whole command.
        exit_status = next(
            line.removeprefix("Exit status: ")
            for line in (Path(folder) / "sluice.1").read_text().splitlines()
            if line.startswith("Exit status: ")
        )
        for raw in sorted(Path(folder).glob("*.1")):
            if raw.stem == "sluice.help":
                continue
            usage = usage_of(manual_check.help_of(command, raw.stem))
            page = Page(version, usage, exit_status, known.get(raw.stem, Facts()))
            written.append(MAN / f"{raw.stem.replace('.', '-')}.1")
            written[-1].write_text("".join(f"{line}\n" for line in page.edited(raw.read_text().splitlines())))
    return written


def usage_of(help_text: str) -> str:
    """The line of a command's help that says how it is called."""
    return next((line.removeprefix("USAGE: ") for line in help_text.splitlines() if line.startswith("USAGE: ")), "")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        give_up("manual", f"--check or nothing, not '{arguments[0]}'", 2)
    command = release()
    pages = write(command)
    if arguments:
        return manual_check.check(command, pages)
    sys.stdout.flush()
    return subprocess.run(["ls", MAN.relative_to(TREE), COMPLETIONS.relative_to(TREE)], cwd=TREE).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
