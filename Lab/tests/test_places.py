"""The cache, the mirror, and what is unpacked."""

import lzma
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from lab.kernel import unwrapped
from lab.places import intact, mirror, part_sum, random_image, seal


class Places(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_a_sealed_folder_is_intact_until_a_byte_of_it_is_another(self) -> None:
        (self.folder / "part").mkdir()
        for name in ("image", "part/a b", "part/c"):
            (self.folder / name).write_text(name)
        self.assertFalse(intact(self.folder))
        seal(self.folder)
        self.assertTrue(intact(self.folder))
        # the list is sha256sum's, as it was in caches made before
        self.assertEqual(subprocess.run(["sha256sum", "--status", "--strict", "-c", "SHA256SUMS"], cwd=self.folder).returncode, 0)
        (self.folder / "part/c").write_text("d")
        self.assertFalse(intact(self.folder))
        (self.folder / "part/c").unlink()
        self.assertFalse(intact(self.folder))

    def test_the_mirror_is_the_one_that_the_host_uses(self) -> None:
        (self.folder / "sources.list.d").mkdir()
        self.assertEqual(mirror(self.folder, {}), "http://deb.debian.org/debian")
        (self.folder / "sources.list.d/debian.sources").write_text("Types: deb\n# http://snapshot.example/archive/debian/1\nURIs: http://near.example/debian/\n")
        self.assertEqual(mirror(self.folder, {}), "http://near.example/debian")
        (self.folder / "sources.list").write_text("# deb http://no.example/debian x\ndeb http://sec.example/debian-security x\ndeb http://old.example/debian x main\n")
        self.assertEqual(mirror(self.folder, {}), "http://old.example/debian")
        self.assertEqual(mirror(self.folder, {"SLUICE_MIRROR": "http://mine.example/d"}), "http://mine.example/d")

    def test_a_kernel_boots_as_the_elf_file_inside_it(self) -> None:
        elf = b"\x7fELF" + os.urandom(5000)
        self.assertEqual(unwrapped(b"MZ" + bytes(3000) + lzma.compress(elf) + b"trailer"), elf)
        for image in (b"MZ nothing in it", b"MZ" + lzma.compress(b"no ELF"), b"MZ\xfd7zXZ\x00 broken"):
            self.assertEqual(unwrapped(image), image)

    def test_a_part_of_an_image_has_the_sum_that_md5sum_gives_it(self) -> None:
        image = self.folder / "image"
        random_image(image, 3000, 8192)
        said = subprocess.run(f"tail -c +1001 {image} | head -c 4000 | md5sum", shell=True, capture_output=True, text=True).stdout.split()[0]
        self.assertEqual(part_sum(image, 1000, 4000), said)
        self.assertEqual(image.stat().st_size, 8192)
