"""A back-end that dies under a guest."""

from __future__ import annotations

from ..debian import inside
from ..guest import Guest
from ..job import Job, wrong_unless
from ..places import Wrong, empty_image
from ..platforms import platform
from ..processes import until
from ..qemu import GuestMachine
from ..witness import check_numbered


class Kill(Job):
    """kill -9 under write load, ten times; afterwards every acknowledged block must be in the image.

    The argument is MODE, or MODE-SUITE with the QEMU of another Debian."""

    kills = 10

    def work(self) -> None:
        self.mode, _, self.suite = self.argument.partition("-")
        self.ring, self.queues = ("packed", 1) if self.mode == "off" else ("split", 2)
        self.attempt(f"{self.mode} {self.ring} {self.queues}q kill{self.suite and ' ' + self.suite}", self._kill)

    def _kill(self) -> str:
        self.must_be_able("kill")
        self.image = self.folder / "vda.img"
        empty_image(self.image, 16 << 30)
        self.ends = self.backends()
        self.ends.start_disk("vda", self.image, self.queues)
        disk = self.ends["vda"].disk("seq", ring=self.ring, queues=self.queues, reconnect=True)
        program = inside(self.suite, self.folder, ["qemu-system-x86_64"]) if self.suite else []
        guest = self.guest(GuestMachine(platform(self.mode), [disk], processors=2, program=program))
        guest.start()
        done, reason = 0, None
        try:
            self._progress(guest, 0)
            for done in range(1, self.kills + 1):
                self.ends["vda"].kill()
                self.ends["vda"].start()
                self._progress(guest, done)
        except Wrong as wrong:
            reason = str(wrong)
        guest.say("stop")
        try:
            guest.wait()
        except Wrong as wrong:
            reason = reason or str(wrong)
        reason = reason or self.ends.stop("vda")
        good, said = check_numbered(self.image, 32, guest.talk.text.encode(), self.folder / "check.log")
        if not good or reason:
            raise Wrong(f"{reason or said} ({done} kills, {said})")
        self.image.unlink()
        return f"{done} kills, {said.strip()}"

    def _progress(self, guest: Guest, kills: int) -> None:
        """At most one line can still come from before the kill; ten more are ten times fifty milliseconds of acknowledged writes."""
        wanted = guest.talk.heard("ack") + 10
        if not until(60, lambda: guest.talk.heard("ack") >= wanted or not guest.lives(), every=0.1):
            raise Wrong(f"after kill {kills} the guest wrote nothing for 60 s")
        wrong_unless(None if guest.lives() else "the guest is gone")
