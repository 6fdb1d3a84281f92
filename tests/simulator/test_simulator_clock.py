"""Rig time: exact over its pieces, the same for every reader, never left running fast by the dead."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.record.clock import Clock
from pytest_sglang.simulator.clock import RigClock, Segment


def test_rig_time_is_wall_time_at_first(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    assert clock.time() == pytest.approx(time.time(), abs=0.01)
    assert (clock.rate, clock.speed, clock.simulated) == (1.0, 100.0, True)


def test_it_has_the_shape_of_the_clock_seam(tmp_path: Path) -> None:
    assert isinstance(RigClock.create(tmp_path, 100.0), Clock)


def test_a_fast_stretch_ends_exactly_where_it_was_said_to(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 1000.0)
    start, wall = clock.time(), time.monotonic()
    clock.fast_until(start + 100.0)
    assert clock.rate == 1000.0
    clock.sleep_until(start + 100.0)
    time.sleep(0.05)
    elapsed = time.monotonic() - wall
    # 100 rig seconds took 0.1 s less the lead-in; what follows is real time, however late the sleeper woke
    assert clock.rate == 1.0
    assert clock.time() - start == pytest.approx(100.0 + elapsed - 0.1, abs=0.02)


def test_every_reader_sees_the_same_time(tmp_path: Path) -> None:
    driver, reader = RigClock.create(tmp_path, 500.0), RigClock(tmp_path)
    driver.fast_until(driver.time() + 50.0)
    earlier, read, later = driver.time(), reader.time(), driver.time()
    assert earlier <= read <= later
    assert reader.rate == 500.0


def test_real_time_can_be_restored_in_the_middle(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    clock.fast_until(clock.time() + 3600.0)
    time.sleep(0.02)
    clock.real()
    before, wall = clock.time(), time.monotonic()
    time.sleep(0.03)
    assert clock.rate == 1.0
    assert clock.time() - before == pytest.approx(time.monotonic() - wall, abs=0.005)


def test_real_on_a_real_clock_changes_nothing(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    size = (tmp_path / "clock").stat().st_size
    clock.real()
    assert (tmp_path / "clock").stat().st_size == size


def test_past_moments_map_through_the_pieces_in_which_they_lie(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    wall_before, rig_before = time.time(), clock.time()
    clock.fast_until(rig_before + 20.0)
    clock.sleep_until(rig_before + 20.0)
    wall_after, mono_after, rig_after = time.time(), time.monotonic(), clock.time()
    assert clock.from_wall(wall_before) == pytest.approx(rig_before, abs=0.02)
    assert clock.from_wall(wall_after) == pytest.approx(rig_after, abs=0.02)
    assert clock.from_wall_monotonic(mono_after) == pytest.approx(rig_after, abs=0.02)
    assert clock.from_wall(wall_before - 1000.0) == pytest.approx(rig_before - 1000.0, abs=0.1)


def test_rig_monotonic_time_goes_there_and_back(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    now = clock.time()
    assert clock.from_monotonic(clock.to_monotonic(now)) == pytest.approx(now, abs=1e-6)
    assert clock.to_monotonic(now) == pytest.approx(time.monotonic(), abs=0.05)


def test_a_killed_owner_does_not_leave_the_rate_up(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    code = "import sys, time; from pathlib import Path; from pytest_sglang.simulator.clock import RigClock\n"
    code += f"c = RigClock(Path({str(tmp_path)!r})); c.fast_until(c.time() + 1e6); print('fast', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert clock.rate == 100.0
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert clock.rate == 1.0
    before, wall = clock.time(), time.monotonic()
    time.sleep(0.05)
    assert clock.time() - before == pytest.approx(time.monotonic() - wall, abs=0.01)


def test_a_cut_off_record_is_ignored_and_written_over(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    with open(tmp_path / "clock", "ab") as file:
        file.write(b"\1" * 11)
    reader = RigClock(tmp_path)
    assert reader.rate == 1.0
    reader.fast_until(reader.time() + 30.0)
    assert clock.rate == 100.0


def test_a_removed_rig_keeps_its_time(tmp_path: Path) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    (tmp_path / "clock").unlink()
    clock.fast_until(clock.time() + 10.0)
    assert clock.time() == pytest.approx(time.time(), abs=0.05)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clock").write_bytes(struct.pack("<8sddd", b"NOTCLOCK", 1, 2, 3))
    with pytest.raises(ValueError, match="not the clock of a simulated rig"):
        RigClock(tmp_path)


@pytest.mark.parametrize("rig_s", [0.0, 30.0, 100.0, 130.0])
def test_a_segment_maps_both_ways(rig_s: float) -> None:
    segment = Segment(mono_s=5.0, wall_s=5.0, rig_s=0.0, rate=100.0, span_s=1.0, owner=os.getpid(), owner_ticks=1)
    assert segment.rig_after(segment.wall_until(rig_s)) == pytest.approx(rig_s)


def test_a_real_segment_lasts_for_ever() -> None:
    segment = Segment(0.0, 0.0, 10.0, 1.0, math.inf, 0, 0)
    assert segment.wall_until(25.0) == 15.0
