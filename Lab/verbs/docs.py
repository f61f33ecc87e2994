"""Builds the documentation of all modules as one site of static pages: docs-out/site.

    Scripts/docs                builds it
    Scripts/docs --serve        serves what was built (or builds it first) on http://127.0.0.1:8000/, PORT=... on another port
    Scripts/docs --check        builds it, and looks at it in a browser without a screen: `N passed, N failed, N skipped` last

DOCS_BASE=/sluice builds it for a server that has it below that path; then --serve and --check look for it there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.places import TREE

from verbs import diagrams
from verbs.programs import give_up, install, output, run

OUT = TREE / "docs-out"
SITE = OUT / "site"
RELEASE = ["-c", "release"]
# There is nothing at the root itself to show.
ROOT = """\
<!doctype html><title>Sluice</title><meta http-equiv="refresh" content="0; url=documentation/"> <a href="documentation/">Sluice</a>
"""


@dataclass(frozen=True)
class Module:
    """A module that has pages."""

    name: str
    catalog: Path


def modules() -> list[Module]:
    """Every module whose folder has a catalog of pages."""
    return sorted((Module(path.stem, path) for path in (TREE / "Sources").rglob("*.docc")), key=lambda module: module.name)


def base() -> str:
    """The path on the server, with a slash at both ends."""
    middle = os.environ.get("DOCS_BASE", "/").strip("/")
    return f"/{middle}/" if middle else "/"


def docc() -> str:
    """The tool, which is beside the compiler."""
    compiler = shutil.which("swift")
    beside = Path(compiler).resolve().parent / "docc" if compiler else None
    return str(beside) if beside and os.access(beside, os.X_OK) else "docc"


def build_modules(scratch: Path) -> Path:
    """What the compiler wrote for the release build holds the symbols too: no build of a kind of its own is needed."""
    print("building the modules, for their symbols (the first time takes some minutes) ...", flush=True)
    with (scratch / "build.log").open("w+") as log:
        if subprocess.run(["swift", "build", *RELEASE, "--product", "sluice"], cwd=TREE, stdout=log, stderr=log).returncode != 0:
            log.seek(0)
            give_up("docs", "the build failed:\n" + "".join(log.readlines()[-30:]))
    return Path(output(["swift", "build", *RELEASE, "--show-bin-path"]).strip())


def convert(module: Module, library: Path, scratch: Path) -> list[str]:
    """Makes the archive of one module; returns what its tools complain about."""
    symbols = scratch / module.name
    symbols.mkdir()
    [headers] = (TREE / "Sources").rglob("CLinux/include")
    extract: list[str | Path] = [
        *("swift-symbolgraph-extract", "-module-name", module.name, "-minimum-access-level", "public"),
        *("-target", f"{platform.machine()}-unknown-linux-gnu", "-I", library / "Modules", "-I", headers),
        *("-Xcc", f"-fmodule-map-file={library}/CLinux.build/module.modulemap"),
        *("-module-cache-path", scratch / "cache", "-output-dir", symbols),
    ]
    # Every page names its scripts from the root of the server, so all archives are made for one place: the merged site's.
    pages: list[str | Path] = [
        *(docc(), "convert", module.catalog, "--additional-symbol-graph-dir", symbols),
        *("--fallback-display-name", module.name, "--fallback-bundle-identifier", f"sluice.{module.name}"),
        *("--transform-for-static-hosting", "--hosting-base-path", base()),
        *("--output-path", OUT / f"archives/{module.name}.doccarchive"),
    ]
    complaints: set[str] = set()
    for command in (extract, pages):
        done = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in done.stdout.splitlines():
            # not the line of source that a message shows
            if re.search("(^|: )(warning|error): ", line) and "is missing documentation" not in line:
                complaints.add(line.replace(f"{TREE}/", ""))
        if done.returncode != 0 and not complaints:
            last = "".join(done.stdout.splitlines()[-1:])
            complaints.add(f"{module.name}: {command[0]} ended with status {done.returncode}: {last}")
    return sorted(complaints)


def build_site() -> int:
    """Builds all of it; 1 where something does not hold together."""
    install("build", "docs")
    if diagrams.main(["--check"]) != 0:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        library = build_modules(scratch)
        for old in (SITE, OUT / "archives"):
            shutil.rmtree(old, ignore_errors=True)
        (OUT / "archives").mkdir(parents=True)
        complaints = [line for module in modules() for line in convert(module, library, scratch)]
    archives = sorted((OUT / "archives").glob("*.doccarchive"))
    run([docc(), "merge", *archives, "--synthesized-landing-page-name", "Sluice", "--output-path", SITE], quiet=True)
    shutil.rmtree(OUT / "archives")
    (SITE / "index.html").write_text(ROOT)
    # The pages ask for it, and do without; a server's log should not tell of anything missing.
    (SITE / "theme-settings.json").write_text("{}\n")
    (OUT / "base").write_text(base() + "\n")
    count = sum(1 for _ in (SITE / "documentation").rglob("index.html"))
    print(f"{SITE.relative_to(TREE)}: {count} pages; make docs-serve shows them", flush=True)
    if complaints:
        print("\n".join(complaints), file=sys.stderr)
        give_up("docs", "the messages above say what does not hold together")
    return 0


def server(port: int, scratch: Path) -> tuple[list[str], str]:
    """A web server as a command, and the path that it has the site below. With port 0 it takes a free one, and says which."""
    below = (OUT / "base").read_text().strip()
    root = SITE
    if below != "/":
        root = scratch / "root"
        link = root / below.strip("/")
        link.parent.mkdir(parents=True)
        link.symlink_to(SITE)
    return [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(root), str(port)], below


def serve() -> int:
    """Shows the site until it is interrupted."""
    port = os.environ.get("PORT") or "8000"
    if not port.isdecimal():
        give_up("docs", f"PORT is a number, not '{port}'", 2)
    if not (SITE / "documentation/index.html").exists():
        build_site()
    with tempfile.TemporaryDirectory() as scratch:
        command, below = server(int(port), Path(scratch))
        print(f"the documentation is at http://127.0.0.1:{port}{below}documentation/ (Ctrl-C ends this)", flush=True)
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            give_up("docs", f"the server ended; if port {port} is in use, say another: PORT=8001 make docs-serve")
        except KeyboardInterrupt:
            pass
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            return build_site()
        case ["--serve"]:
            return serve()
        case ["--check"]:
            from verbs.docs_check import check

            return check()
    give_up("docs", f"--serve or --check, not '{arguments[0]}'", 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
