"""Slow or stuck: what is a sign of life, and that no pause or slowness of our own is held against a start."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Phase
from pytest_sglang.server import watchdog
from pytest_sglang.server.watchdog import Watchdog, over, patience_s


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MIN_SILENCE_WALL_S", 0.3)
    monkeypatch.setattr(watchdog, "LOOK_S", 0.2)


@pytest.fixture
def idle() -> Iterator[psutil.Process]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    time.sleep(0.3)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def silence(dog: Watchdog, process: psutil.Process | None, within_s: float) -> float | None:
    """What it says first within so many seconds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if (found := dog.silent_s(process)) is not None:
            return found
        time.sleep(0.05)
    return None


def test_nothing_that_moves_is_a_hang(idle: psutil.Process) -> None:
    found = silence(Watchdog(SystemClock(), 0.6, lambda: None), idle, 20.0)
    assert found is not None
    assert found > 0.6


def test_every_sign_that_changes_is_life(idle: psutil.Process) -> None:
    count = iter(range(10**9))
    assert silence(Watchdog(SystemClock(), 0.8, lambda: next(count)), idle, 2.5) is None


def test_cpu_time_of_a_child_is_life() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-S", "-c", code])
    try:
        dog = Watchdog(SystemClock(), 1.0, lambda: None)
        assert silence(dog, psutil.Process(process.pid), 3.0) is None
        assert len(dog.pids) == 2
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.wait()


def test_a_slow_look_is_waited_for_before_anything_is_said(idle: psutil.Process) -> None:
    began: list[float] = []

    def slow() -> object:
        began.append(time.monotonic())
        time.sleep(0.7)
        return None

    begin = time.monotonic()
    dog = Watchdog(SystemClock(), 0.4, slow)
    assert silence(dog, idle, 20.0) is not None
    # the silence was suspected after 0.4 s: a look that began before it proves nothing
    assert any(each - begin > 0.4 for each in began)
    assert time.monotonic() - begin > 1.1


def test_a_look_that_never_comes_back_hides_no_hang(idle: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LONGEST_LOOK_S", 1.0)
    forever = threading.Event()
    try:
        assert silence(Watchdog(SystemClock(), 0.4, forever.wait), idle, 20.0) is not None
    finally:
        forever.set()


def test_what_the_driver_says_of_a_lost_card_is_raised(idle: psutil.Process) -> None:
    def lost() -> object:
        raise RuntimeError("GPU is lost")

    with pytest.raises(RuntimeError, match="GPU is lost"):
        silence(Watchdog(SystemClock(), 60.0, lost), idle, 20.0)


def test_a_phase_is_given_up_far_beyond_its_budget_only() -> None:
    assert (patience_s(60.0), patience_s(1200.0)) == (660.0, 2400.0)
    phases = (Phase("weights", 10.0, 700.0), Phase("capture_decode", 700.0, None))
    assert over(phases, {"weights": 60.0, "capture_decode": 600.0}, 1800.0) is None
    told = over(phases, {"capture_decode": 600.0}, 2000.0)
    assert told == "phase capture_decode has lasted 21 min 40 s, budget 10 min 00 s"
    assert over(phases, {}, 1e6) is None
    assert over((), {"weights": 1.0}, 1e6) is None
