"""What `sluice check` found, as the table of Documentation/check.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from .job import Row
from .jobs.conformance import FAULTS, PEERS
from .places import TREE, LabError

PAGE = TREE / "Documentation" / "check.md"
BEGIN, END = "<!-- peers: written by make lab -->", "<!-- end of peers -->"


def cell(rows: Sequence[Row]) -> str:
    """What is said of one back-end in one check. A fault that was seen in at least two of three tries is one; `kept*` is what did not come
    again."""
    first = next((row["verdict"] for row in rows if row["try"] == 1), None)
    if first is None:
        return ""
    if first not in FAULTS:
        return "–" if first == "not offered" else str(first)
    faults = sorted(row["verdict"] for row in rows if row["verdict"] in FAULTS)
    if len(faults) < 2:
        return "kept*"
    most = max(((len(list(same)), verdict) for verdict, same in groupby(faults)), key=lambda pair: pair)
    return f"**{most[1]}**"


class Findings:
    """The rows of check.jsonl, in the order in which the checks are made; a column a back-end."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.results = [row for row in rows if row.get("check")]
        self.known = {row["peer"]: row for row in rows}
        self.there = [peer for peer in PEERS if peer in self.known and not self.known[peer].get("absent")]
        # of a check that was made several times the last row says what it is about
        self.about = {row["check"]: row for row in self.results}
        self.checks = list(dict.fromkeys(row["check"] for row in self.results if row["try"] == 1))
        self.cells = {(check, peer): cell([row for row in self.results if row["check"] == check and row["peer"] == peer])
                      for check in self.about for peer in self.there}

    def heads(self) -> list[str]:
        """The columns' titles."""
        heads = []
        for peer in self.there:
            known = self.known[peer]
            version = ".".join(known["version"].split(".")[:2])
            heads.append(f"{known['title']} {version} {'' if known['title'] == 'Sluice' else known['type']}".removesuffix(" "))
        return heads

    def table(self) -> str:
        """All that stands between the page's two marks."""
        there = self.there
        lines = [f"Checks in which at least one back-end failed. {len(self.checks)} checks were made; what is not in the table was kept or not offered "
                 "everywhere. \"–\": not offered, or not for this kind of device; nothing: not made in this run. `kept*` says that a fault was seen once "
                 "and not again; such a cell counts as kept.",
                 "", f"| about | check | {' | '.join(self.heads())} |", f"|---|---|{'---|' * len(there)}"]
        for check in self.checks:
            cells = [self.cells[check, peer] for peer in there]
            if any(text.startswith("**") or text == "kept*" for text in cells):
                lines.append(f"| {self.about[check]['rule']} | `{check}` | {' | '.join(cells)} |")
        for verdict in ("kept", *FAULTS, "not offered"):
            lines.append(f"| | {verdict} | {' | '.join(str(self._count(peer, verdict)) for peer in there)} |")
        lines.append("")
        lines += [f"* {self.known[peer]['title']} (`{peer}`) could not be checked: {self.known[peer]['absent']}"
                  for peer in PEERS if peer in self.known and self.known[peer].get("absent")]
        lines += ["", "### What was seen", "The evidence of each fault, from the first of three tries."]
        return "\n".join([*lines, "", *(self._seen(peer) for peer in there if self._faults(peer))]).rstrip("\n") + "\n"

    def _count(self, peer: str, verdict: str) -> int:
        words = (self.cells[check, peer].replace("*", "") for check in self.checks)
        return sum(("not offered" if word == "–" else word) == verdict for word in words)

    def _faults(self, peer: str) -> list[str]:
        return [check for check in self.checks if self.cells[check, peer].startswith("**")]

    def _seen(self, peer: str) -> str:
        known, lines = self.known[peer], []
        for check in self._faults(peer):
            row = next(row for row in self.results if row["peer"] == peer and row["check"] == check)
            lines.append(f"* `{check}` ({row['rule']}): {row['says']} **{row['verdict']}**: {row['evidence']}")
        evidence = "\n".join(lines)
        return f"<details><summary>{known['title']} {known['version']}: {len(lines)} faults</summary>\n\n{evidence}\n\n</details>\n"


def write(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Puts the table into the page, between its two marks."""
    lines = page.read_text().splitlines(keepends=True)
    begin, end = (next((number for number, line in enumerate(lines) if mark in line), None) for mark in (BEGIN, END))
    if begin is None or end is None:
        raise LabError(f"{page} has no marks to write between")
    page.write_text("".join([*lines[:begin + 1], Findings(rows).table(), *lines[end:]]))
