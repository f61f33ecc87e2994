"""What a guest reports: lines `SLUICE-GUEST key=value ...`. The guest's end is Tests/Guests/init and Tests/Guests/workloads."""

from __future__ import annotations

import re
from pathlib import Path

MARK = "SLUICE-GUEST "


def words_of(line: str) -> dict[str, str]:
    """The keys and values of a report; nothing for a line that is none."""
    _, mark, report = line.rpartition(MARK)
    return dict(word.split("=", 1) for word in report.split() if "=" in word) if mark else {}


class Talk:
    """The reports of a guest, as far as they have come."""

    def __init__(self, *logs: Path) -> None:
        self.logs = logs

    @property
    def text(self) -> str:
        """All that was said; of several machines one after the other, for a line may begin in one and end in the next."""
        return b"".join(log.read_bytes() for log in self.logs if log.exists()).decode(errors="replace").replace("\r", "")

    def reports(self) -> list[dict[str, str]]:
        """The reports in their order."""
        return [words for line in self.text.splitlines() if (words := words_of(line))]

    def said(self, disk: str, key: str, **others: str) -> str:
        """What was said last of a disk under this key, in a report that has these other words; empty if nothing was."""
        wanted = {"disk": disk, **others}
        for words in reversed(self.reports()):
            if key in words and all(words.get(name) == value for name, value in wanted.items()):
                return words[key]
        return ""

    def heard(self, pattern: str) -> int:
        """How many reports begin like this: a regular expression."""
        return len(re.findall(MARK + pattern, self.text))

    def last(self, key: str) -> str:
        """What was said last under this key, of any disk or none."""
        return next((words[key] for words in reversed(self.reports()) if key in words), "")

    @property
    def verdict(self) -> str:
        """The guest's own verdict over all of its disks, in its last report; empty if there is none."""
        return next((words["verdict"] for words in reversed(self.reports()) if "verdict" in words and "seconds" in words), "")

    def complaints(self) -> list[str]:
        """What the guest said that went wrong."""
        return [line for line in self.text.splitlines() if re.search(MARK + "(error|.*verdict=bad)", line)]
