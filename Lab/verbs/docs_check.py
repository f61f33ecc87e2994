"""Looks at the built documentation: are all files there that its pages name, and does a browser show what they hold?"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lab.places import TREE

from verbs import docs

# seconds for the server to start, and for a page to be shown
START = 30
SHOW = 60


@dataclass
class Checks:
    """What was checked; prints a line each."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def say(self, good: bool, what: str) -> None:
        print(f"{'ok     ' if good else 'failed '} docs {what}", flush=True)
        self.passed, self.failed = self.passed + good, self.failed + (not good)


@dataclass(frozen=True)
class Look:
    """A page to be opened, and what a reader must see on it."""

    title: str
    path: str
    text: str


def looks() -> list[Look]:
    """The pages that a browser opens."""

    def first_sentence(page: str) -> str:
        [file] = (TREE / "Sources").rglob(page)
        # without the marks of code and links
        return re.sub(r"`|\[([^]]*)\]\([^)]*\)", r"\1", file.read_text().splitlines()[2])

    return [
        Look("the root leads to the start page", "", "VhostUserCheck"),
        Look("the start page lists the modules", "documentation/", first_sentence("VhostUser.md")),
        Look("a module's page", "documentation/virtio/", first_sentence("Virtio.md")),
        Look("an essay", "documentation/virtio/device-addresses/", first_sentence("Device-addresses.md")),
        Look("a symbol's page", "documentation/vhostuserbackend/vhostuserserver/", "VhostUserServer"),
    ]


def missing(site: Path, base: str) -> list[str]:
    """The files that pages ask for before any script runs, and the data that the script then asks for, that are not there."""
    found: set[str] = set()
    for page in (site / "documentation").rglob("index.html"):
        for name in re.findall(r'(?:src|href)="([^"]+)"', page.read_text()):
            if not name.startswith(base) or not (site / name.removeprefix(base)).exists():
                found.add(name)
        data = site / "data" / page.parent.relative_to(site)
        if not data.with_name(data.name + ".json").exists():
            found.add(str(data.relative_to(site)) + ".json")
    return sorted(found)


def visible(page: str) -> str:
    """The text of a page as a reader sees it."""
    page = re.sub(r"<(script|style|noscript)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", "", page).split())


def browser() -> str | None:
    """Chromium, installed where it is missing and can be."""
    if not shutil.which("chromium"):
        subprocess.run([TREE / "Scripts/install", "browser"])
    return shutil.which("chromium")


def shown(program: str, url: str, scratch: Path) -> str:
    """The page as the browser has it after its scripts have run."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={scratch}/profile"]
    with (scratch / "browser.log").open("wb") as log:
        child = subprocess.Popen(
            [program, *flags, "--virtual-time-budget=20000", "--dump-dom", url], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            return child.communicate(timeout=SHOW)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            return child.communicate()[0] or ""


def open_pages(program: str, scratch: Path, checks: Checks) -> None:
    """Opens every page of `looks` in the browser, from a server of their own."""
    command, base = docs.server(0, scratch)
    log = scratch / "server.log"
    with log.open("wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        port = None
        give_up_at = time.monotonic() + START
        while not port:
            if child.poll() is not None or time.monotonic() > give_up_at:
                print(log.read_text())
                return checks.say(False, "the server does not start")
            time.sleep(0.05)
            port = re.search(r"^Serving HTTP on .* port (\d+) ", log.read_text(), re.M)
        for look in looks():
            url = f"http://127.0.0.1:{port.group(1)}{base}{look.path}"
            good = " ".join(html.escape(look.text, quote=False).split()) in visible(shown(program, url, scratch))
            checks.say(good, look.title if good else f"{look.title}: no '{look.text}' on {url}")
            if not good:
                lines = (scratch / "browser.log").read_text(errors="replace").splitlines()
                print("\n".join([line for line in lines if "dbus" not in line][-3:]))
        absent = [line for line in log.read_text().splitlines() if re.search(r'" [45]\d\d ', line)]
        print("".join(f"{line}\n" for line in absent), end="")
        checks.say(not absent, "the browser asked for what is not there (above)" if absent else "the browser found all it asked for")
    finally:
        child.kill()
        child.wait()


def check() -> int:
    """Builds the site and looks at it; prints `N passed, N failed, N skipped` last."""
    checks = Checks()
    sys.stdout.flush()
    built = subprocess.run([TREE / "Scripts/docs"]).returncode == 0
    checks.say(built, "build")
    if (docs.SITE / "documentation/index.html").exists():
        absent = missing(docs.SITE, docs.base())
        checks.say(not absent, f"missing: {' '.join(absent)}" if absent else "every file that the pages name is there")
        program = browser()
        if program is None:
            checks.skipped = len(looks()) + 1
            print("SKIPPED docs: the pages in a browser: there is no Chromium, and it cannot be installed (above is why)")
        else:
            with tempfile.TemporaryDirectory() as scratch:
                open_pages(program, Path(scratch), checks)
    print(f"{checks.passed} passed, {checks.failed} failed, {checks.skipped} skipped")
    return 0 if checks.failed == 0 else 1
