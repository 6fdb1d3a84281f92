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


class ClockWatch:
    """Whether CLOCK_REALTIME was set since this was made. Look often: a clock set forth and back in between looks untouched."""

    def __init__(self) -> None:
        self._began_ns = clock_offset_ns()
        self._worst_ns = 0

    def look(self) -> None:
        """Compare the clocks now."""
        shift_ns = clock_offset_ns() - self._began_ns
        if abs(shift_ns) > abs(self._worst_ns):
            self._worst_ns = shift_ns

    @property
    def step(self) -> str | None:
        """Why the stamps cannot be trusted, or None."""
        if abs(self._worst_ns) <= STEP_NS:
            return None
        return f"the machine's clock was set by {self._worst_ns / 1e6:+.1f} ms during the round"


class WakeLag:
    """How late this process comes to read, where the kernel does not stamp: it asks to be woken every few milliseconds.

    What it finds later than asked lay unread for as long at most: time on the run queue and in the client's own work alike.
    """

    TICK_S = 0.005

    def __init__(self) -> None:
        self.late_ns: list[int] = []
        self._due_ns = 0

    def timeout_s(self) -> float:
        """How long to wait for bytes now."""
        now = now_ns()
        if 0 < self._due_ns <= now:
            self.late_ns.append(now - self._due_ns)
        left_ms = max(1, -(-(self._due_ns - now) // 1_000_000)) if self._due_ns > now else round(self.TICK_S * 1000)
        # whole milliseconds: epoll knows no others, and what it rounds up is not the client's lateness
        self._due_ns = now + left_ms * 1_000_000
        return left_ms / 1000

    def woken(self, at_ns: int) -> None:
        """The wait has ended, by bytes or by time."""
        if at_ns >= self._due_ns:
            self.late_ns.append(at_ns - self._due_ns)
            self._due_ns = 0
