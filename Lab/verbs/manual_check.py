"""Does a man page say what --help says? Its lines are joined, and what troff needs is taken away."""

from __future__ import annotations

import re
from pathlib import Path

from verbs.programs import output


def help_of(command: Path, page: str) -> str:
    """The help of the command that a page is about; no command has a dash or a dot in its own name."""
    return output([command, *re.split(r"[-.]", page)[1:], "--help"])


def check(command: Path, pages: list[Path]) -> int:
    """Prints a line a page, and `N passed, N failed` last."""
    failed = 0
    for page in pages:
        wrong = differences(help_of(command, page.stem), page.read_text())
        failed += bool(wrong)
        print(f"failed  manual {page.stem}: not as --help: {' '.join(wrong)}" if wrong else f"ok      manual {page.stem}")
    print(f"{len(pages) - failed} passed, {failed} failed")
    return 0 if failed == 0 else 1


def differences(help_text: str, page: str) -> list[str]:
    """What a page does not say."""
    said = " ".join(help_text.split()).replace("`", "")
    lines = page.splitlines()
    plain = (re.sub(r"^\.[A-Z][a-z] *", "", line).replace(r"\-", "-") for line in lines)
    words = " ".join(" ".join(plain).replace(r"\(oq", "").replace(r"\(cq", "").split())
    wrong: list[str] = []
    # the sentence that begins so, up to its end
    if status := re.search(r"Exit status: ([^.]*\.)", said):
        if f'EXIT STATUS" {status.group(1)}' not in words:
            wrong.append(f"the exit status: {status.group(1)}")
    elif 'EXIT STATUS" 0 ' not in words:
        wrong.append("no exit status")
    for option in re.findall(r"^  (?:-., )?--([a-z-]+)", help_text, re.M):
        if not re.search(rf"^\.It Fl (.*, )?-{option}( |$)", page, re.M):
            wrong.append(f"--{option}")
    if "] -- [<" in said:
        end = lines.index(".Sh DESCRIPTION")
        if not lines[end - 1].startswith(".Op Fl - Ar "):
            wrong.append("no -- before the command line")
    usage = re.search(r"USAGE: .*OPTIONS:", said)
    for required in re.findall(r" -(-[a-z-]+) <", usage.group() if usage else ""):
        if not re.search(rf"^\.Fl {required} ", page, re.M):
            wrong.append(f"-{required} must be given")
    return wrong
