"""Cache trees for the tests: from listings of real caches, or of a few invented entries."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

DATA = Path(__file__).parent.parent / "data" / "caches"
HASH = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABCDEFGHIJKLMNOPQRST"


def write(path: Path, size: int = 1) -> Path:
    """A file of ``size`` bytes without contents worth the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def triton_entry(root: Path, kernel: str, number: int = 0) -> Path:
    """A complete Triton entry of ``kernel``; ``number`` tells entries apart."""
    digits = "ABCDEFGHIJ"
    folder = root / (HASH[:-4] + "".join(digits[int(digit)] for digit in f"{number:04d}"))
    for suffix in ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "json"):
        write(folder / f"{kernel}.{suffix}", 10)
    write(folder / f"__grp__{kernel}.json", 10)
    return folder


def age(paths: Iterable[Path], epoch_s: float) -> None:
    """Set the modification time of files."""
    for path in paths:
        os.utime(path, (epoch_s, epoch_s))
