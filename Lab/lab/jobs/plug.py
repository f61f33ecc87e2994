"""Disks and memory that come and go while the machine runs."""

from __future__ import annotations

import re
import time

from ..figures import Figures
from ..monitor import MonitorDisk
from ..places import Wrong
from ..processes import until
from .adverse import AdverseJob


# The disk is pulled out and put in again under writes, with a back-end that lives through all of it. (R066)
class Plug(AdverseJob):
    """Hot plug. Every other time the new disk gets the socket that the old one had: QEMU keeps it open, and the back-end's second life on it
    begins at SET_OWNER."""

    title = "hot plug"
    same = 0

    def move(self) -> None:
        disk = self.begin(f"sluice.vda=plug sluice.threads={self.threads}")
        while True:
            self.wait_for_turn(f"after turn {self.turn} nothing was written", 3)
            self.sampled()
            if self.turn == self.turns:
                break
            self.turn += 1
            self.take_out()
            if self.keeps_connection():
                self.same += 1
            else:
                self.machine.must("the connection stays", "chardev-remove", id="chardev0")
                self.machine.must(f"turn {self.turn}: no connection", "chardev-add", **disk.connection())
            self._put_in(disk)
        self.look_back()
        self.machine.tell("stop")

    def keeps_connection(self) -> bool:
        """Does the new disk get the old one's socket?"""
        return self.turn % 2 == 0

    def take_out(self) -> None:
        """Takes the disk out, and waits until the guest has let go of it."""
        self.pull()
        self.wait_until_gone()

    def pull(self) -> None:
        """Asks for the disk to be taken out."""
        self.machine.must(f"turn {self.turn}: the disk cannot be taken out", "device_del", id="disk0")

    def is_gone(self) -> bool:
        """Has the guest let go of it?"""
        return self.machine.events("DEVICE_DELETED", "disk0") >= self.turn

    def wait_until_gone(self) -> None:
        """The guest has forty seconds for that."""
        if not until(40, self.is_gone):
            raise Wrong(f"turn {self.turn}: the guest did not let go of the disk")

    def look_back(self) -> None:
        """What has to be true of all the turns."""

    def _put_in(self, disk: MonitorDisk) -> None:
        # QEMU says that the old disk is gone a moment before it lets go of the socket
        said = ""

        def added() -> bool:
            nonlocal said
            try:
                said = self.machine.ask("human-monitor-command", command_line=f"device_add {disk.device}")
            except Wrong as wrong:
                said = str(wrong)
                return False
            return "in use" not in said

        if not until(10, added):
            raise Wrong(f"turn {self.turn}: the disk cannot be put in: {said}")

    def done(self) -> str:
        return f"{self.turn} times out and in{f', {self.same} times on the same socket' if self.same else ''}"


class Restart(Plug):
    """The same with requests that nothing ends: the back-end is killed, and only then the disk is pulled out. It is there again at once, or
    when the guest has been waiting for two seconds."""

    title, reconnect = "hot plug and a killed back-end", True
    waited = 0

    def keeps_connection(self) -> bool:
        return False

    def take_out(self) -> None:
        self.ends["disk"].kill()
        self.pull()
        if self.turn % 2 == 0:
            time.sleep(2)
            self.waited += not self.is_gone()
        self.ends["disk"].start()
        self.wait_until_gone()

    def look_back(self) -> None:
        if self.turn > 1 and not self.waited:
            raise Wrong("no request was ever in flight")

    def done(self) -> str:
        return f"{super().done()}, each time without its back-end, {self.waited} times it waited"


# Memory is added to the running machine, and the disk reads into it; then it is taken away while the disk reads into it. (R069)
class Memory(AdverseJob):
    """Memory that comes and goes."""

    title, threads = "memory added and removed", 8
    size = 384 << 20
    high = left = 0

    def move(self) -> None:
        # what is to go again may hold nothing that cannot be moved
        self.begin(f"sluice.vda=memory sluice.threads={self.threads} memhp_default_state=online_movable", more_memory=",slots=4,maxmem=2G")
        machine = self.machine
        if not machine.heard("disk=vda pause=small", 1, 60):
            raise Wrong("the guest does not come up")
        before = self.ends.explain("disk", "before")
        machine.must("no memory can be added", "object-add", qom_type="memory-backend-memfd", id="more", size=self.size, share=True)
        machine.must("no memory can be added", "device_add", driver="pc-dimm", id="dimm", memdev="more")
        machine.tell("go")
        if not machine.more("ack", 20, 90):
            raise Wrong("with more memory the guest writes nothing")
        self._memory_is("with more memory", before, self.size)
        self.high = self._high_pages()
        if self.high < 10000:
            raise Wrong(f"only {self.high or 'none'} of the pages that the disk reads into are new")
        machine.tell("less")
        if not machine.heard("begin", 2, 60) or not machine.more("ack", 5, 60):
            raise Wrong("with less in use the guest writes nothing")
        self.left = self._high_pages()
        if self.left < 1000:
            raise Wrong(f"only {self.left or 'none'} of the pages in use are of the memory that is to go")
        self._take_away()
        self._memory_is("after the memory went", before, 0)
        machine.tell("stop")

    def _take_away(self) -> None:
        machine = self.machine
        machine.must("the memory cannot be taken away", "device_del", id="dimm")
        if not until(60, lambda: machine.events("DEVICE_DELETED", "dimm") or machine.events("MEM_UNPLUG_ERROR")):
            raise Wrong("the guest does not let go of the memory")
        if machine.events("MEM_UNPLUG_ERROR"):
            raise Wrong("the guest says that the memory cannot go")
        machine.must("the memory stays after its device went", "object-del", id="more")
        if not machine.more("ack", 20, 60):
            raise Wrong("after the memory went the guest writes nothing")

    def _memory_is(self, when: str, before: Figures | None, more: int) -> None:
        """What the back-end says, against what it said before and these."""
        self.sampled()
        now = self.ends.explain("disk")
        if before and now and now["memory_bytes"] != before["memory_bytes"] + more:
            raise Wrong(f"{when} the back-end knows {now['memory_bytes']} bytes of memory, before it was {before['memory_bytes']}")

    def _high_pages(self) -> int:
        found = re.findall(r"begin .*high_pages=(\d+)", self.machine.talk.text)
        return int(found[-1]) if found else 0

    def done(self) -> str:
        return f"384 MiB added, {self.high} pages of it read into, taken away with {self.left} in use"
