"""Stock Debian kernels: the image, the modules that a guest here needs in loading order, and the version."""

from __future__ import annotations

import contextlib
import lzma
import re
import shutil
import subprocess
from pathlib import Path

from .debian import Suite, say
from .places import LabError, cache, intact, locked, seal
from .processes import output

SUITES = {"6.1": "bookworm",                # VT-d and AMD-Vi are built in
          "6.12": "bookworm-backports"}     # brings virtio-iommu
FLAVOURS = {"amd64": "amd64", "arm64": "arm64", "s390x": "s390x", "ppc64el": "powerpc64le"}
MODULES = ("virtio_pci", "virtio_iommu", "virtio_blk", "virtio_rng", "ext4", "crc32c_generic")
# what more some guests need: what gives a PCI device to a process, or drives an NVMe controller
MORE_MODULES = {"vfio": ("vfio_iommu_type1", "vfio_pci"), "nvme": ("nvme",)}


def kernel(name: str, architecture: str = "amd64", more: str = "") -> Path:
    """The folder of a kernel: `image`, `version`, `modules` with their `order`. The package comes from its own suite through apt,
    which checks the archive's signature; it is unpacked, never installed. With `more` (vfio or nvme) it has more modules."""
    if name not in SUITES:
        raise LabError("which kernel? 6.1 or 6.12")
    folder = cache() / f"kernel-{name}{'' if architecture == 'amd64' else '-' + architecture}{'-' + more if more else ''}"
    with locked(folder.name):
        if not intact(folder):
            if folder.exists():
                say(f"kernel: the cached {name} is damaged; fetching it again")
            say(f"kernel: fetching Debian's, of {SUITES[name]}, once")
            _fetch(folder, name, architecture, more)
    return folder


def kernel_version(folder: Path) -> str:
    """The version as Debian's packages and the kernel itself write it."""
    return (folder / "version").read_text().strip()


def _fetch(folder: Path, name: str, architecture: str, more: str) -> None:
    new, unpacked = Path(f"{folder}.new"), Path(f"{folder}.unpacked")
    for left in (folder, new, unpacked):
        shutil.rmtree(left, ignore_errors=True)
    (new / "modules").mkdir(parents=True)
    unpacked.mkdir()
    suite = Suite(SUITES[name], architecture).update()
    package = suite.kernel_package(FLAVOURS[architecture])
    root = suite.unpack(package, unpacked)
    version = package.removeprefix("linux-image-")
    # an ELF image on ppc64el, and on the others what QEMU takes as it is
    image = root / "boot" / f"{'vmlinux' if architecture == 'ppc64el' else 'vmlinuz'}-{version}"
    if architecture == "amd64":
        (new / "image").write_bytes(unwrapped(image.read_bytes()))
    else:
        shutil.copyfile(image, new / "image")
    (new / "version").write_text(version + "\n")
    _modules(root, version, new / "modules", MODULES + MORE_MODULES.get(more, ()))
    needed = {"vfio": "vfio-pci", "nvme": "nvme"}.get(more, "virtio_blk")
    if not re.search(rf"^{needed}\.", (new / "modules/order").read_text(), re.MULTILINE):
        raise LabError(f"found no {needed} in {package}")
    shutil.rmtree(unpacked)
    seal(new)
    new.rename(folder)


def _modules(root: Path, version: str, folder: Path, wanted: tuple[str, ...]) -> None:
    """Puts modules and what they need into a folder, uncompressed, with the order in which they load."""
    subprocess.run(["depmod", "-b", root, version], check=True, timeout=120)
    order: list[str] = []
    for module in wanted:
        # virtio_iommu exists from 6.12 on
        said = output(["modprobe", "-d", root, "-S", version, "--show-depends", module]) or ""
        for path in re.findall(r"^insmod (\S+)", said, re.MULTILINE):
            file = Path(path).name.removesuffix(".xz")
            if file not in order:
                data = Path(path).read_bytes()
                (folder / file).write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
                order.append(file)
    (folder / "order").write_text("".join(f"{file}\n" for file in order))


def unwrapped(image: bytes) -> bytes:
    """The ELF file inside a compressed kernel: emulated, the kernel spends five seconds unpacking itself, and the ELF boots at once
    (it carries a PVH entry). The image itself where there is none."""
    inner = b""
    if (at := image.find(b"\xfd7zXZ\x00")) >= 0:
        with contextlib.suppress(lzma.LZMAError):
            inner = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[at:])
    elif (at := image.find(b"\x28\xb5\x2f\xfd")) >= 0:
        inner = subprocess.run(["zstd", "-dc"], input=image[at:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60).stdout
    return inner if inner.startswith(b"\x7fELF") else image
