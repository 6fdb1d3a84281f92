"""Rig time: wall time, but for the fast stretches inside long start-up phases. Kept in a file which outlives every process.

The file is a header and an append-only list of segments. A fast segment says how long it lasts, so its end is exact however late
its owner wakes up, and it ends at once when its owner is found dead: a killed process never leaves the clock running fast.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.simulator import procs

NAME = "clock"
_HEADER = struct.Struct("<8sddd")  # magic, speed, rig monotonic and rig epoch at the beginning
_SEGMENT = struct.Struct("<dddddqq")
_MAGIC = b"RIGCLK1\0"


class Segment(NamedTuple):
    """From ``mono_s`` on rig time runs at ``rate`` for ``span_s`` wall seconds, then at 1."""

    mono_s: float
    wall_s: float
    rig_s: float
    rate: float
    span_s: float
    owner: int
    owner_ticks: int

    def rig_after(self, elapsed_s: float) -> float:
        """Rig time ``elapsed_s`` wall seconds after the begin."""
        fast_s = min(elapsed_s, self.span_s)
        return self.rig_s + self.rate * fast_s + (elapsed_s - fast_s)

    def wall_until(self, rig_s: float) -> float:
        """Wall seconds from the begin until rig time ``rig_s``."""
        end_s = self.rig_s + self.rate * self.span_s
        if rig_s <= end_s:
            return (rig_s - self.rig_s) / self.rate
        return self.span_s + rig_s - end_s


class RigClock:
    """The clock of the simulated rig in ``directory``: any number of processes read it, the server that starts drives it."""

    simulated = True

    def __init__(self, directory: Path) -> None:
        self._path = Path(directory) / NAME
        data = self._path.read_bytes()
        header: tuple[bytes, float, float, float] = _HEADER.unpack_from(data)
        magic, self.speed, self._mono0_s, self._rig0_s = header
        if magic != _MAGIC:
            raise ValueError(f"{self._path} is not the clock of a simulated rig")
        self._size = 0
        self._segments: list[Segment] = []
        self._starts: tuple[list[float], list[float]] = ([], [])
        self._take(data)

    @classmethod
    def create(cls, directory: Path, speed: float) -> RigClock:
        """A new clock: rig time is wall time now. ``speed`` is the rate of fast segments."""
        mono_s, wall_s = time.monotonic(), time.time()
        segment = Segment(mono_s, wall_s, wall_s, 1.0, math.inf, 0, 0)
        path = Path(directory) / NAME
        path.write_bytes(_HEADER.pack(_MAGIC, speed, mono_s, wall_s) + _SEGMENT.pack(*segment))
        return cls(directory)

    # --- reading -----------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Rig time now, seconds since the epoch."""
        now_s = time.monotonic()
        last = self._last(now_s)
        return last.rig_after(now_s - last.mono_s)

    @property
    def rate(self) -> float:
        """Rig seconds in a wall second, now."""
        now_s = time.monotonic()
        last = self._last(now_s)
        return last.rate if now_s - last.mono_s < last.span_s else 1.0

    def from_wall(self, wall_s: float) -> float:
        """Rig time at the machine's own time ``wall_s`` (epoch seconds)."""
        self._last(time.monotonic())
        segment = self._at(self._starts[1], wall_s)
        return segment.rig_after(wall_s - segment.wall_s) if wall_s >= segment.wall_s else segment.rig_s - (segment.wall_s - wall_s)

    def from_monotonic(self, monotonic_s: float) -> float:
        """Rig time (epoch) at the rig's own monotonic time, the clock of the simulated unit's time stamps."""
        return self._rig0_s + (monotonic_s - self._mono0_s)

    def to_monotonic(self, rig_s: float) -> float:
        """The rig's own monotonic time at rig time ``rig_s`` (epoch)."""
        return self._mono0_s + (rig_s - self._rig0_s)

    def from_wall_monotonic(self, monotonic_s: float) -> float:
        """Rig time (epoch) at the machine's CLOCK_MONOTONIC."""
        self._last(time.monotonic())
        segment = self._at(self._starts[0], monotonic_s)
        return segment.rig_after(monotonic_s - segment.mono_s)

    def sleep_until(self, rig_s: float) -> None:
        """Sleep until rig time ``rig_s``."""
        while True:
            now_s = time.monotonic()
            last = self._last(now_s)
            left_s = last.wall_until(rig_s) - (now_s - last.mono_s)
            if left_s <= 0:
                return
            time.sleep(min(left_s, 1.0))

    def _at(self, starts: list[float], moment_s: float) -> Segment:
        return self._segments[max(0, bisect_right(starts, moment_s) - 1)]

    def _last(self, now_s: float) -> Segment:
        self._refresh()
        last = self._segments[-1]
        if last.rate != 1.0 and last.owner and now_s - last.mono_s < last.span_s and not self._owned(last):
            self._append(1.0, math.inf, only_after=last)
            last = self._segments[-1]
        return last

    @staticmethod
    def _owned(segment: Segment) -> bool:
        return segment.owner == os.getpid() or procs.alive(segment.owner, segment.owner_ticks)

    def _refresh(self) -> None:
        try:
            if os.stat(self._path).st_size != self._size:
                self._take(self._path.read_bytes())
        except FileNotFoundError:
            pass  # the rig was removed: what is known stays right

    def _take(self, data: bytes) -> None:
        whole = (len(data) - _HEADER.size) // _SEGMENT.size * _SEGMENT.size
        body = data[_HEADER.size : _HEADER.size + whole]
        self._segments = [Segment(*each) for each in _SEGMENT.iter_unpack(body)]
        self._starts = ([each.mono_s for each in self._segments], [each.wall_s for each in self._segments])
        self._size = _HEADER.size + whole

    # --- driving -----------------------------------------------------------------------------------------------------------

    def fast_until(self, rig_s: float, rate: float | None = None) -> None:
        """Run fast (or at ``rate``) from now until rig time ``rig_s``, then at 1 again; ends early when this process dies."""
        self._append(rate or self.speed, None, until_s=rig_s)

    def real(self) -> None:
        """Run at 1 from now on."""
        if self.rate != 1.0:
            self._append(1.0, math.inf)

    def _append(self, rate: float, span_s: float | None, *, until_s: float = 0.0, only_after: Segment | None = None) -> None:
        try:
            with open(self._path, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._take(file.read())
                last = self._segments[-1]
                if only_after is not None and last != only_after:
                    return  # another reader noticed first
                now_s, wall_s = time.monotonic(), time.time()
                rig_s = last.rig_after(now_s - last.mono_s)
                if span_s is None:
                    span_s = max(0.0, until_s - rig_s) / rate
                owner = (os.getpid(), procs.start_ticks(os.getpid())) if rate != 1.0 else (0, 0)
                file.seek(self._size)
                file.write(_SEGMENT.pack(now_s, wall_s, rig_s, rate, span_s, *owner))
        except FileNotFoundError:
            return
        self._refresh()
