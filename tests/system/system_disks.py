"""Small file systems for one test, and helpers that fill them. Mounting needs root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20


@contextlib.contextmanager
def mounted(kind: str, folder: Path, mib: int = 96) -> Iterator[Path]:
    """A file system of this size, as a folder in this one."""
    place = folder / "mounted"
    place.mkdir()
    if kind == "tmpfs":
        words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(place)]
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)
        words = ["mount", "-o", "loop", str(image), str(place)]
    subprocess.run(words, check=True, timeout=60)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=60)


class Filler:
    """Another program on the same disk: it takes every byte that is free."""

    def __init__(self, place: Path) -> None:
        self._file = place / "filler"

    def fill(self) -> None:
        with self._file.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (MIB, 65_536, 4_096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def remove(self) -> None:
        self._file.unlink()
