"""Log files that were put aside: ``LOG.1``, ``LOG.2.gz``, ``LOG-20261127``, ``server-20261127.log.gz``; a start may have begun in one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

_AGE = r"[.-]\d[\d.-]*"
_PACKED = (".gz", ".xz", ".bz2")
_CHUNK = 1 << 20


def siblings(path: Path) -> list[Path]:
    """Rotated files of ``path``, newest first (by the time of their last line)."""
    packed = "|".join(re.escape(each) for each in _PACKED)
    behind = re.compile(rf"{re.escape(path.name)}{_AGE}(?:{packed})?")
    inside = re.compile(rf"{re.escape(path.stem)}{_AGE}{re.escape(path.suffix)}(?:{packed})?")
    try:
        names = [each for each in path.parent.iterdir() if behind.fullmatch(each.name) or inside.fullmatch(each.name)]
        found = [(each.stat().st_mtime, each) for each in names if each.is_file()]
    except OSError:
        return []  # what cannot be listed cannot be read
    return [each for _, each in sorted(found, reverse=True)]


def read(path: Path, limit: int) -> str:
    """The text of a log file, plain or packed, at most its last ``limit`` bytes. Raises OSError, EOFError for a broken archive."""
    with _opened(path) as file:
        kept = b""
        while chunk := file.read(_CHUNK):
            kept = kept + chunk if len(kept) < 2 * limit else kept[-limit:] + chunk
    return kept[-limit:].decode("utf-8", errors="replace")


def is_packed(path: Path) -> bool:
    """Whether the file's name says that it is compressed."""
    return path.suffix in _PACKED


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        import gzip

        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".xz":
        import lzma

        return lzma.open(path, "rb")
    if path.suffix == ".bz2":
        import bz2

        return bz2.open(path, "rb")
    return path.open("rb")


def before(path: Path, text: str, enough: Callable[[str], bool], limit: int) -> str:
    """What the rotated siblings hold before ``text``, as far back as it takes until ``enough(all of it)``; unreadable ones end it."""
    older = ""
    for each in siblings(path):
        if enough(older + text) or len(older) + len(text) >= limit:
            break
        try:
            older = read(each, limit - len(older) - len(text)) + older
        except (OSError, EOFError):
            break
    return older
