"""A look at a back-end several times a second, beside what a job does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .backend import BackEnd
from .figures import Figures

Keep = Callable[[Figures, Figures | None], bool]


def one_that_did_most(now: Figures, kept: Figures | None) -> bool:
    """Of several connections to one back-end the figures are those of the one that did most."""
    done = now.get("completions", 0)
    return bool(now["connected"] and done > 0 and (not kept or done >= kept["completions"]))


class Watch:
    """Asks a back-end until it is stopped: `samples` are what could be reached when, and `kept` is the last answer worth it."""

    def __init__(self, backend: BackEnd, every: float = 0.2, keep: Keep = one_that_did_most) -> None:
        self.samples: list[dict[str, Any]] = []
        self.kept: Figures | None = None
        self._backend, self._every, self._keep = backend, every, keep
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it. What was seen stays."""
        self._stopped.set()
        self._thread.join(15)

    def _look(self) -> None:
        while not self._stopped.wait(self._every):
            now = self._backend.explain()
            if now:
                # a controller that is not virtio has no address path, and only a server of functions has memory without descriptor
                keys = ("connected", "reachable_bytes", "memory_bytes", "address_path", "bytes_without_descriptor")
                self.samples.append({"at": time.time_ns() // 1000000, **{key: now[key] for key in keys if key in now}})
                if self._keep(now, self.kept):
                    self.kept = now
