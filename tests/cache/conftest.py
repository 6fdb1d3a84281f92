"""Cache trees for the tests: from listings of real caches, or of a few invented entries."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pytest_sglang.cache.locate import CachePlace, locate

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


@pytest.fixture
def h200(tmp_path: Path) -> tuple[tuple[CachePlace, ...], Callable[[str], Path]]:
    """The caches of a real H200 after three starts, and where a path of the listings is."""
    places = locate(version="0.5.11", environ={}, home=tmp_path / "home", tmpdir=tmp_path / "tmp", user="root")
    named = {place.kind: place.path for place in places}

    def path_of(text: str) -> Path:
        top, _, rest = text.partition("/")
        return {"{inductor}": named["inductor"], "{triton}": named["triton"], "{home}": tmp_path / "home"}[top] / rest

    with gzip.open(DATA / "h200-sglang-0.5.11.tsv.gz", "rt") as listing:
        for line in listing:
            size, text = line.rstrip("\n").split("\t")
            write(path_of(text), int(size))
    return places, path_of
