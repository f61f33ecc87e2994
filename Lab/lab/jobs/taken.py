"""The lab's server that somebody has taken over: it asks for what it likes, and whether it gets it is QEMU's decision."""

from __future__ import annotations

from ..figures import Figures
from ..places import MIB, Wrong, part_sum, random_image
from ..qemu import Disk, GuestMachine
from ..relay import Relay
from .nvme import NVMeSystem
from .vfio_user import BEHIND, FunctionBoot

# physical addresses of the guest's, among them its kernel's, and one of no memory
ADDRESSES = (0x1000, 0x1000000, 0x10000000, 0x7DEAD0000)


class TakenBoot(FunctionBoot):
    """A disk whose server is beset. While the guest stands still every address is asked for, to read and to write."""

    def start(self) -> list[Disk]:
        self.devices, image = {"vda": "blk"}, self.image("vda")
        random_image(image, 8 * MIB, 16 * MIB)
        self.original["vda"] = part_sum(image, 0, 8 * MIB)
        end = self.ends.start_function("blk", "vda", image, ("--iommu-platform", "on"))
        self.relay = Relay(self.folder / "relay.sock", end.socket)
        self.errors: list[int] = []
        self.pauses["taken"] = self._take
        return [Disk("taken", socket=self.relay.path, vfio_user=True)]

    def _take(self, _: str) -> None:
        try:
            for address in ADDRESSES:
                error, data = self.relay.read(address, 64)
                self.errors.append(error)
                # what was read goes back as it was: where nothing confines the function the guest is to live on
                self.errors.append(self.relay.write(address, data or bytes(64)))
        except Wrong as wrong:
            self.failure = str(wrong)

    def machine(self, disks: list[Disk]) -> GuestMachine:
        return GuestMachine(BEHIND[self.behind], disks, bit=False, processors=2, strict_boot=True, memory="ram", program=self.job.program)

    def run(self) -> FunctionBoot:
        try:
            return super().run()
        finally:
            if hasattr(self, "relay"):
                self.relay.close()

    def data_wrong(self, name: str) -> str | None:
        if wrong := super().data_wrong(name):
            return wrong
        if len(self.errors) != 2 * len(ADDRESSES):
            return f"{len(self.errors)} answers came to {2 * len(ADDRESSES)} commands"
        if not all(self.errors):
            return f"QEMU gave what the guest had not mapped: {self.errors}"
        return None if self.faults(name, {}) else "the guest's kernel was told of no fault"

    def faults(self, name: str, figures: Figures) -> int | None:
        """Those that the guest's IOMMU reported to its kernel, as far as that prints so many at once."""
        return int(self.talk.said(name, "faults", step="iommu") or 0)


class TakenSystem(NVMeSystem):
    """Behind VT-d strict, with memory that has no descriptor."""

    boots = TakenBoot  # type: ignore[assignment]

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.shared = False
