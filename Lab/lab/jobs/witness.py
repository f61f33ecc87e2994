"""The witness itself."""

from __future__ import annotations

from ..job import Job
from ..places import MIB, Wrong, empty_image
from ..witness import check, write


class Witness(Job):
    """The witness of the adverse jobs, looked at itself: an image that writers left is right, and wrong as soon as one byte of it is
    another, a block stands in its neighbour's place, a window is empty, or the newest writes are those that came before them."""

    threads = "16"

    def work(self) -> None:
        self.attempt("witness", self._look)

    def _look(self) -> str:
        image, before, wrong, talk = (self.folder / name for name in ("disk.img", "before.img", "wrong.img", "talk.log"))
        for file in (image, before):
            empty_image(file, 64 * MIB)
        write(before, self.threads, 199, self.folder / "before.log")
        write(image, self.threads, 200, talk)
        good, answer = check(image, "vda", self.threads, talk.read_bytes())
        if not good:
            raise Wrong(f"nothing is wrong, and it says {answer.splitlines()[-1]}")
        right, block = image.read_bytes(), 4096
        at, neighbour, window = (3 * 64 + 17) * block + 100, (5 * 64 + 10) * block, 7 * 64 * block
        tampered = {
            "torn": right[:at] + bytes([(right[at] + 1) % 256]) + right[at + 1:],
            "order": right[:neighbour + block] + right[neighbour:neighbour + block] + right[neighbour + 2 * block:],
            "lost": right[:window] + bytes(64 * block) + right[window + 64 * block:],
            "lost-newest": before.read_bytes(),
        }
        for kind, data in tampered.items():
            wrong.write_bytes(data)
            good, answer = check(wrong, "vda", self.threads, talk.read_bytes())
            if good:
                raise Wrong(f"it does not see {kind}")
            if f"SLUICE-GUEST error disk=vda {kind.removesuffix('-newest')} " not in answer:
                raise Wrong(f"of {kind} it says {answer.splitlines()[0]}")
        for file in (image, before, wrong):
            file.unlink()
        return f"{len(tampered)} kinds of wrong images seen, and nothing in a right one"
