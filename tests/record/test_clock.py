"""The machine's clock as a rig's clock: three ways to say the same moment."""

from __future__ import annotations

import time

from pytest_sglang.record.clock import Clock, SystemClock


def test_the_machines_clock_is_a_clock_and_is_not_simulated() -> None:
    clock = SystemClock()
    assert isinstance(clock, Clock)
    assert clock.simulated is False


def test_it_tells_wall_time() -> None:
    before = time.time()
    told = SystemClock().time()
    assert before <= told <= time.time()
    assert SystemClock().from_wall(1_700_000_000.25) == 1_700_000_000.25


def test_a_monotonic_moment_is_told_in_epoch_seconds() -> None:
    earlier = time.monotonic() - 90.0
    before = time.time()
    told = SystemClock().from_monotonic(earlier)
    # the call lies between the two readings, so the moment does too: no guess at how fast this machine is
    assert before - 90.0 - 0.01 <= told <= time.time() - 90.0 + 0.01 + (time.time() - before)
