"""The one seam for time: a real rig's clock is the machine's, a simulated rig's runs faster inside long start-up phases.

Durations, time stamps and budgets of a server's life are read from a Clock; requests and energy run in real time always
(a simulated rig's clock has rate 1 while anything is requested).
"""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Time as the rig lives it."""

    simulated: bool

    def time(self) -> float:
        """Seconds since the epoch, in rig time."""

    def from_wall(self, wall_s: float) -> float:
        """Rig time (epoch seconds) at the machine's own time ``wall_s`` (epoch seconds)."""

    def from_monotonic(self, monotonic_s: float) -> float:
        """Rig time (epoch seconds) at the rig's CLOCK_MONOTONIC ``monotonic_s``, the clock of systemd's *TimestampMonotonic."""


class SystemClock:
    """The machine's own clock; rig time is wall time."""

    simulated = False

    def time(self) -> float:
        return time.time()

    def from_wall(self, wall_s: float) -> float:
        return wall_s

    def from_monotonic(self, monotonic_s: float) -> float:
        return time.time() - (time.monotonic() - monotonic_s)
