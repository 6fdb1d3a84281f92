"""Whether a compiled GPU binary is whole: its ELF header and tables against the size of its file. Nothing checks this at load."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

HEADER_BYTES = 64
CUDA = 190
"""e_machine of NVIDIA CUDA (elf.h EM_CUDA)."""
_NO_BITS = 8
_MAX_SECTIONS = 4096


class Tables(NamedTuple):
    """Where the tables of a 64-bit ELF file are: offset, size of an entry, number of entries."""

    sections: tuple[int, int, int]
    segments: tuple[int, int, int]
    machine: int


def tables(head: bytes) -> Tables | None:
    """The tables that a file's first 64 bytes announce; None for what is no little-endian 64-bit ELF file. Source: elf(5)."""
    if len(head) < HEADER_BYTES or head[:6] != b"\x7fELF\x02\x01":
        return None
    machine = struct.unpack_from("<H", head, 18)[0]
    segments_at, sections_at = struct.unpack_from("<QQ", head, 32)
    segment_size, segments, section_size, sections = struct.unpack_from("<HHHH", head, 54)
    return Tables((sections_at, section_size, sections), (segments_at, segment_size, segments), machine)


def broken(size: int, read: Callable[[int, int], bytes]) -> str | None:
    """What is wrong with an ELF file of ``size`` bytes, in a few words; None = it is whole. ``read(offset, length)`` gives its bytes.

    Every table, and every section that occupies bytes, must end inside the file.
    """
    if size == 0:
        return "it is empty"
    head = read(0, HEADER_BYTES)
    found = tables(head)
    if found is None:
        return "it is cut off" if size < HEADER_BYTES and b"\x7fELF\x02\x01".startswith(head[:6]) else "it has no ELF header"
    at, each, number = found.sections
    need = max(offset + length * count for offset, length, count in (found.sections, found.segments))
    if need <= size and each >= 64 and number <= _MAX_SECTIONS:
        rows = read(at, each * number)
        for index in range(len(rows) // each):
            kind, _, _, offset, length = struct.unpack_from("<IQQQQ", rows, index * each + 4)
            need = need if kind in (0, _NO_BITS) else max(need, offset + length)
    return None if need <= size else f"it is cut off: {size} of at least {need} bytes"


def broken_file(path: str) -> str | None:
    """``broken`` for a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return broken(os.fstat(descriptor).st_size, lambda at, length: os.pread(descriptor, length, at))
    finally:
        os.close(descriptor)
