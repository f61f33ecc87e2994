"""What the pages of swift-argument-parser lack: names with dashes (`man sluice-serve-blk`), who they are from, the defaults, which
options must be given, the `--` before a command line, what the commands below one are for, and the exit status where it belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Facts:
    """What a command says of itself that its page does not."""

    # by option: the values it takes, and its default
    details: dict[str, str] = field(default_factory=dict)
    # the arguments that are a command line, behind `--`
    command_lines: set[str] = field(default_factory=set)
    # the commands below, and what each is for
    commands: list[tuple[str, str]] = field(default_factory=list)


def facts(command: dict[str, Any], page: str = "") -> dict[str, Facts]:
    """The facts of a command and of those below it, by the name of the page."""
    page = page or command["commandName"]
    own = Facts()
    found = {page: own}
    for argument in command.get("arguments") or []:
        if argument["kind"] == "option":
            said = []
            if argument.get("allValues"):
                said.append("values: " + ", ".join(argument["allValues"]))
            if argument.get("defaultValue"):
                said.append("default: " + argument["defaultValue"])
            if said:
                own.details[argument["names"][0]["name"]] = "; ".join(said)
        if argument.get("parsingStrategy") == "postTerminator":
            own.command_lines.add(argument["valueName"])
    for below in command.get("subcommands") or []:
        if below["commandName"] != "help":
            own.commands.append((below["commandName"], below.get("abstract") or ""))
            found |= facts(below, f"{page}.{below['commandName']}")
    return found


def text(line: str) -> str:
    """Running text: `this` in quotes, and an option in one piece, with dashes that can be copied."""
    line = re.sub(r"`([^`]*)`", r"\\(oq\1\\(cq", line)
    return " ".join(word.replace("-", r"\-") if re.match(r"(\\\(oq|\()?-", word) else word for word in line.split())


@dataclass
class Page:
    """A page of one command."""

    version: str
    usage: str
    exit_status: str
    facts: Facts

    def edited(self, lines: list[str]) -> Iterator[str]:
        """The lines of the page as they are to be."""
        # what ends the synopsis, and the option whose details are still to come
        last = option = ""
        exit_status = self.exit_status
        for line in lines:
            macro, _, rest = line.partition(" ")
            if line.startswith(".Xr sluice.help 1") or line == ".Pp":
                continue
            if line.startswith("Exit status: "):
                exit_status = line.removeprefix("Exit status: ")
            elif line.startswith(".Ex -std"):
                yield text(exit_status)
            elif line.startswith((".Op Ar ", ".Ar subcommand")):
                argument = rest.removeprefix("Ar ").removesuffix("...")
                if macro == ".Op" and argument not in self.facts.command_lines:
                    yield line
                else:
                    last = line.replace(" Ar ", " Fl - Ar ", 1)
            elif line == "":
                yield ".Pp"
            elif line.startswith("."):
                if line.startswith(".Sh DESCRIPTION") and last:
                    yield last
                if line.startswith('.Sh "EXIT STATUS"'):
                    yield from self._commands()
                if line.startswith(".It Fl -"):
                    option = rest.removeprefix("Fl -").partition(" ")[0]
                yield self._macro(line)
            else:
                yield text(line)
                if option in self.facts.details:
                    yield f"({self.facts.details[option]})"
                    option = ""

    def _macro(self, line: str) -> str:
        if line.startswith(".Os"):
            return f'.Os "Sluice {self.version}"'
        if line.startswith((".Dt ", ".Xr ")):
            return "." + line[1:].replace(".", "-")
        if line.startswith(".Op Fl -"):
            option = line.removeprefix(".Op Fl -").partition(" ")[0]
            # without brackets what must be given
            return line.replace(".Op ", ".", 1) if f" --{option} <" in self.usage else line
        return line

    def _commands(self) -> Iterator[str]:
        if not self.facts.commands:
            return
        yield ".Sh COMMANDS"
        yield ".Bl -tag -width 6n"
        for name, purpose in self.facts.commands:
            yield f".It Cm {name}"
            yield text(purpose)
        yield ".El"
