"""Every job there is: what does it, what it needs installed, and what may run beside it."""

from __future__ import annotations

from dataclasses import dataclass

from .job import Job
from .jobs.adverse import Many, Rebind, Resets
from .jobs.clients import CLIENTS, Libblkio, UserModeLinux
from .jobs.clients_as_systems import DPDK, ChannelBus, LibblkioSystem, UserModeLinuxSystem
from .jobs.conformance import PEERS, Check
from .jobs.firmware import FirmwareSystem
from .jobs.kill import Kill
from .jobs.matrix import Matrix, Reboot
from .jobs.migrate import Migrate
from .jobs.nvme import NVMeCommands, NVMeFromBIOS, NVMeFromUEFI
from .jobs.openbios import OpenBios
from .jobs.plug import Memory, Plug, Restart
from .jobs.qos import Qos
from .jobs.systems import SYSTEMS, SystemJob
from .jobs.taken import TakenSystem
from .jobs.toggle import Toggle
from .jobs.vfio import VfioSystem
from .jobs.vfio_user import VfioUserLimits, VfioUserSystem
from .jobs.witness import Witness
from .places import LabError
from .platforms import PLATFORMS


@dataclass(frozen=True)
class Entry:
    """A job. It may run beside any other, as many at once as JOBS says, unless it is `alone`."""

    name: str
    does: type[Job]
    needs: tuple[str, ...] = ()      # groups of Scripts/install besides those of every guest on x86-64
    alone: bool = False


# What `make guests` runs: every kind of IOMMU is met, with those that x86-64 does not have. The first one fetches a QEMU of another suite, if there
# is none here yet, while others run; the last one needs it too.
USUAL = ("lab-vfio-user-vtd matrix-strict matrix-lazy kill-strict matrix-off matrix-pt matrix-virtio matrix-amd kill-off reboot-strict reboot-off uml "
         "libblkio witness check-sluice-blk check-sluice-rng lab-smmu lab-spapr lab-zpci lab-vfio-user-taken lab-vfio-user-vtd-ram").split()

# What takes longer than a look: asked for by `adverse`, which stands for all of them, or by name. The longest first, so that none of them
# is left alone at the end.
ADVERSE = ("migrate-strict many-strict migrate-off plug-strict plug-off restart-strict restart-off toggle-strict resets-strict resets-off many-off "
           "memory-strict memory-off rebind-strict rebind-off qtests").split()

# The systems that are no guests of the usual kind, and what a system needs.
SYSTEM_JOBS: dict[str, type[Job]] = {"uml": UserModeLinuxSystem, "libblkio": LibblkioSystem, "ccw": ChannelBus, "vfio": VfioSystem,
                                     "ovmf": FirmwareSystem, "sun4u": OpenBios, "dpdk": DPDK}
SYSTEM_JOBS |= {name: VfioUserSystem for name in SYSTEMS if name.startswith("vfio-user-")} | {"vfio-user-limits": VfioUserLimits, "vfio-user-taken": TakenSystem}
SYSTEM_JOBS |= {"nvme-commands": NVMeCommands, "nvme-seabios": NVMeFromBIOS, "nvme-ovmf": NVMeFromUEFI}
SYSTEM_NEEDS = {"uml": ("uml",), "libblkio": ("trixie",), "qemu10": ("trixie",), "qemu11": ("trixie",), "smmu": ("arm",), "spapr": ("ppc",),
                "zpci": ("s390x",), "ccw": ("s390x",), "sun4u": ("sparc", "trixie"), "ovmf": ("firmware",), "nvme-commands": ("trixie", "nvme"),
                "nvme-seabios": ("trixie", "loader"), "nvme-ovmf": ("trixie", "firmware")}
SYSTEM_NEEDS |= {name: ("trixie",) for name in SYSTEMS if name.startswith("vfio-user-")}
CHECK_NEEDS = {"dpdk": ("dpdk",)}
MODES = ("off", "strict")


def _entries() -> list[Entry]:
    entries = [Entry(f"{kind}-{mode}", does) for kind, does in (("matrix", Matrix), ("reboot", Reboot)) for mode in PLATFORMS]
    entries += [Entry(f"kill-{mode}", Kill) for mode in PLATFORMS]
    entries += [Entry(f"kill-{mode}-{suite}", Kill, ("trixie",)) for mode in PLATFORMS for suite in ("trixie", "sid")]
    entries += [Entry("uml", UserModeLinux, ("uml",)), Entry("libblkio", Libblkio, ("trixie",)), Entry("witness", Witness)]
    entries += [Entry(f"libblkio-{client}", Libblkio, ("trixie",)) for client in CLIENTS]
    entries += [Entry(f"lab-{name}", SYSTEM_JOBS.get(name, SystemJob), SYSTEM_NEEDS.get(name, ())) for name in SYSTEMS]
    # how long somebody else's back-end takes is part of some verdicts; of ours nothing comes to nothing, however busy the machine is
    entries += [Entry(f"check-{name}", Check, CHECK_NEEDS.get(name, ("trixie",) if peer.chroot else ()), alone=not peer.ours) for name, peer in PEERS.items()]
    for kind, does in (("migrate", Migrate), ("many", Many), ("plug", Plug), ("restart", Restart), ("resets", Resets), ("memory", Memory), ("rebind", Rebind)):
        entries += [Entry(f"{kind}-{mode}", does) for mode in MODES]
    return [*entries, Entry("toggle-strict", Toggle, ("loader",)), Entry("qtests", Qos, ("qtests",))]


JOBS = {entry.name: entry for entry in _entries()}


def entry(name: str) -> Entry:
    """The job of that name."""
    if name not in JOBS:
        raise LabError(f"no job '{name}'; there are: {' '.join([*USUAL, *ADVERSE])}, and every lab-SYSTEM and check-PEER of `Scripts/lab/run list`")
    return JOBS[name]
