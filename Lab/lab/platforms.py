"""The machines a guest can be: what QEMU, its kernel and a device on it have to be told."""

from __future__ import annotations

from dataclasses import dataclass

from .places import LabError

VTD = ("-device", "intel-iommu,intremap=off,device-iotlb=on")


@dataclass(frozen=True)
class Platform:
    """A machine without its devices. The defaults are x86-64's."""

    name: str
    words: str = ""                      # for the kernel
    devices: tuple[str, ...] = ()        # the IOMMU, before anything that is behind it
    ats: bool = False                    # disks have address translation services
    translates: bool = True              # QEMU offers VIRTIO_F_ACCESS_PLATFORM unless told otherwise
    kernel: str = "6.1"
    program: str = "qemu-system-x86_64"
    architecture: str = "amd64"
    machine: str = "q35"
    processor: tuple[str, ...] = ("-cpu", "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2")
    memory: str = "640M"
    console: str = ""                    # the one serial line, where there is no second for the guest's reports
    bus: str = ""                        # where disks are; a root port of its own for each where none is said
    zpci: bool = False                   # a disk needs a zPCI function of its own

    def place(self, number: int, translated: bool) -> tuple[list[str], str]:
        """Where a disk is: the devices that it needs before it, and options of its own."""
        if self.zpci:
            return ["-device", f"zpci,uid={number + 1},fid={number + 1},target=device{number}"], f",id=device{number}"
        if self.bus:
            return [], f",bus={self.bus}"
        # only behind a root port is a device a PCI Express device to QEMU, with address translation services
        port = f"pcie-root-port,id=port{number},chassis={number + 1},slot={number + 1}"
        return ["-device", port], f",bus=port{number}{',ats=on' if translated and self.ats else ''}"


PLATFORMS = {platform.name: platform for platform in (
    Platform("off", translates=False),
    Platform("strict", "intel_iommu=on iommu.strict=1", VTD, ats=True),
    Platform("lazy", "intel_iommu=on iommu.strict=0", VTD, ats=True),
    Platform("pt", "intel_iommu=on iommu=pt", VTD, ats=True),
    # QEMU's AMD-Vi names a device by the bus number it had before the firmware ran, which behind a port is the wrong one
    Platform("amd", "amd_iommu=on", ("-device", "amd-iommu,intremap=off"), processor=("-cpu", "EPYC"), bus="pcie.0"),
    Platform("virtio", devices=("-device", "virtio-iommu-pci"), kernel="6.12", ats=True),
    # every DMA through a buffer of the kernel's own, as in a guest whose memory is encrypted
    Platform("swiotlb", "swiotlb=32768,force"),
    # the first domain of a paravirtualised Xen: what it calls physical is not the machine's
    Platform("xen", memory="1G"),
    Platform("smmu", program="qemu-system-aarch64", architecture="arm64", machine="virt,iommu=smmuv3,gic-version=3",
             processor=("-cpu", "cortex-a57"), console="ttyAMA0"),
    # memory in steps of 256 MiB; what its firmware would protect against is of no use in an emulation; its host bridge is the one
    # with the tables
    Platform("spapr", program="qemu-system-ppc64", architecture="ppc64el", memory="768M", processor=(), console="hvc0", bus="pci.0",
             machine="pseries,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"),
    Platform("zpci", program="qemu-system-s390x", architecture="s390x", machine="s390-ccw-virtio", processor=(), console="ttysclp0", zpci=True),
)}


def platform(name: str) -> Platform:
    """The platform of that name."""
    if name not in PLATFORMS:
        raise LabError(f"no platform '{name}'; there are: {' '.join(PLATFORMS)}")
    return PLATFORMS[name]
