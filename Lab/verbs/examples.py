"""Builds the examples as a package of their own and starts each: it must listen within ten seconds and end when told to.

    Scripts/examples            `N passed, N failed` last"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verbs.programs import build, give_up

# seconds until it listens, and until it has ended
LIMIT = 10


def starts(program: Path, arguments: list[str], socket: Path, log: Path) -> str | None:
    """Starts an example and ends it; what went wrong, if anything did."""
    with log.open("wb") as said:
        child = subprocess.Popen([program, *arguments, str(socket)], stdin=subprocess.DEVNULL, stderr=said)
    try:
        give_up_at = time.monotonic() + LIMIT
        while not socket.is_socket():
            if child.poll() is not None or time.monotonic() > give_up_at:
                return f"{program.name} does not listen:\n{log.read_text(errors='replace')}"
            time.sleep(0.05)
        child.terminate()
        child.wait(LIMIT)
        return None
    except subprocess.TimeoutExpired:
        return f"{program.name} does not end when it is told to"
    finally:
        child.kill()
        child.wait()


def main(arguments: list[str]) -> int:
    if arguments:
        give_up("examples", f"no options, not '{arguments[0]}'", 2)
    products = build("--package-path", "Examples", "--scratch-path", ".build/examples")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk.img"
        disk.touch()
        with disk.open("r+b") as file:
            file.truncate(16 << 20)
        examples = {"serve-a-disk": [str(disk)], "write-a-device": []}
        for example, options in examples.items():
            wrong = starts(products / example, options, folder / f"{example}.sock", folder / f"{example}.log")
            failed += wrong is not None
            print(f"examples: {wrong}" if wrong else f"{example}: ok", flush=True)
    print(f"{len(examples) - failed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
