"""When did these bytes arrive? The kernel's answer where there is one, else the moment of the read.

On Linux a TCP socket with SO_TIMESTAMPNS hands the arrival time of the data to ``recvmsg`` as ancillary data (socket(7)), so the
figures do not depend on how busy the client is. The stamp is that of the *last* segment of a read: TCP merges queued segments. It
is CLOCK_REALTIME, so the send time is read from the same clock, and a step of that clock is looked for: steps move CLOCK_REALTIME
against CLOCK_MONOTONIC, slewing moves both (clock_gettime(2)).
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

SO_TIMESTAMPNS = 35
"""asm-generic/socket.h, SO_TIMESTAMPNS_OLD: two native longs. The socket module of Python 3.11 has no name for it."""

STEP_NS = 500_000
"""A shift of CLOCK_REALTIME against CLOCK_MONOTONIC beyond this is a step, not the noise of reading two clocks."""

_STAMP = struct.Struct("@qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_STAMP.size) if hasattr(socket, "CMSG_SPACE") else 0

now_ns = time.time_ns


def ask_kernel(sock: socket.socket) -> bool:
    """Ask for arrival times on this TCP socket; False where the system has none."""
    # SPARC and MIPS number their socket options otherwise; 32-bit systems have another struct
    if not sys.platform.startswith("linux") or struct.calcsize("@l") != 8 or not _ANCILLARY_BYTES:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        return sock.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS) == 1
    except OSError:
        return False


def receive(sock: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Bytes that lie ready, and the arrival time of the last of them (epoch, ns), None where the kernel gave none."""
    data, ancillary, _flags, _address = sock.recvmsg(size, _ANCILLARY_BYTES)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(content) >= _STAMP.size:
            seconds, nanoseconds = _STAMP.unpack_from(content)
            return data, seconds * 1_000_000_000 + nanoseconds
    return data, None


def clock_offset_ns(
    realtime_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns, tries: int = 9
) -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, from the tightest of several pairs of readings."""
    best: tuple[int, int] | None = None
    for _ in range(tries):
        before = monotonic_ns()
        real = realtime_ns()
        after = monotonic_ns()
        found = (after - before, real - (before + after) // 2)
        best = found if best is None or found < best else best
    assert best is not None
    return best[1]


def clock_step(before_ns: int, after_ns: int) -> str | None:
    """Why the stamps between two readings of the offset cannot be trusted, or None."""
    shift = after_ns - before_ns
    if abs(shift) <= STEP_NS:
        return None
    return f"the machine's clock was set by {shift / 1e6:+.1f} ms during the round"
