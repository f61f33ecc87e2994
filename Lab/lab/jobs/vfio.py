"""The lab's system whose disk goes to a user-space process in the guest, through vfio-pci. What happens in the guest is in
Tests/Guests/handed.c and Tests/Guests/workloads/handed."""

from __future__ import annotations

import re

from ..job import FAILED
from ..places import MIB, part_sum, random_image
from ..platforms import platform
from ..qemu import Disk, GuestMachine
from .matrix import halves_wrong
from .systems import SystemBoot, SystemJob, features_of


class HandedBoot(SystemBoot):
    """One boot: the back-end is asked where the guest stands still."""

    rings = {"vda": "split"}
    keep = None
    looks = {pause: pause for pause in ("kernel", "handed", "outside", "done")}

    def start(self) -> list[Disk]:
        random_image(self.image("vda"), 8 * MIB, 16 * MIB)
        self.original["vda"] = part_sum(self.image("vda"), 0, 8 * MIB)
        # one queue, for the process has no use for more: QEMU would ask on for the used ring of a second one that the kernel once had
        return [self.ends.start_disk("vda", self.image("vda"), 1).disk("handed")]

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(platform("strict"), disks, bit=self.bit == "on", processors=2, extra="vfio")

    @property
    def served(self) -> str:
        """The sample of the process at work, or of the kernel where the process refused the device."""
        return "handed" if self.bit == "on" else "done"

    def wrong(self, name: str) -> str | None:
        talk = self.talk
        if self.failure:
            return self.failure
        if talk.said(name, "md5", step="kernel-read") != self.original[name]:
            return "the kernel read other bytes than the image held"
        if wrong := halves_wrong(talk, name, self.image(name), self.original[name]):
            return wrong
        if self.bit == "on" and 33 not in features_of(talk.said(name, "features", step="handed")):
            return "the process did not take bit 33"
        if self.bit == "off" and not talk.said(name, "why", step="refused").startswith("VIRTIO_F_ACCESS_PLATFORM_is_not_offered"):
            return "the process did not refuse"
        return self.account_wrong(name, self.figures(self.served))

    def outside_wrong(self) -> str | None:
        """What the process tried outside of its memory, and against its permissions: every request failed in the guest, was counted
        here, and moved nothing."""
        tried = [line for line in self.talk.text.splitlines() if "disk=vda step=outside " in line]
        if len(tried) != 6:
            return f"{len(tried)} requests outside of the process's memory instead of 6"
        if not all(re.search(r" status=[1-9-].* canary=kept", line) for line in tried):
            return "one succeeded or wrote"
        if not self.talk.said("vda", "faults", step="iommu"):
            return "the IOMMU reported nothing to the guest's kernel"
        if not self.ours:
            return None
        figures = self.figures("outside")
        if not figures:
            return "sluice explain gave no answer"
        if figures["faults"] != 6:
            return f"{figures['faults']} faults counted, expected 6"
        return "something was lost" if figures["lost_pages"] or figures["failed_sessions"] else None


class VfioSystem(SystemJob):
    """With the bit off the process refuses, and the kernel does the work."""

    boots = HandedBoot

    def report_boot(self, boot: SystemBoot, took: float) -> None:
        assert isinstance(boot, HandedBoot)
        stopped = boot.ends.stop("vda")
        row = self.new_row("blk (process)" if boot.bit == "on" else "blk (process refuses)", took, bit=boot.bit, ring="split",
                           bytes_verified=16 * MIB, negotiated=features_of(boot.talk.said("vda", "features")))
        row.take(boot.figures(boot.served))
        # no other back-end speaks vhost-user with the bit
        reason = self.judge(row, boot, lambda some: some.wrong("vda"), "qemu", stopped)
        if boot.bit == "on":
            row = self.new_row("blk (outside)", took, bit=boot.bit, ring="split", negotiated=row.negotiated)
            row.take(boot.figures("outside"))
            if reason:
                self.report(row, FAILED, reason)
            else:
                self.judge(row, boot, HandedBoot.outside_wrong)
        boot.image("vda").unlink(missing_ok=True)
