from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.server import ready, watchdog
from pytest_sglang.server.command import Command
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.server.log import TextLog, split
from pytest_sglang.server.ready import Progress, StartFailed
from pytest_sglang.server.start import select

Fake = Callable[..., Command]


class FastClock:
    """Rig time that runs faster than the wall from its making on."""

    simulated = True

    def __init__(self, rate: float) -> None:
        self._rate, self._zero = rate, time.time()

    def time(self) -> float:
        return self.from_wall(time.time())

    def from_wall(self, wall_s: float) -> float:
        return self._zero + (wall_s - self._zero) * self._rate

    def from_monotonic(self, monotonic_s: float) -> float:
        return self.from_wall(time.time() - (time.monotonic() - monotonic_s))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hangs are noticed sooner, so that tests are short."""
    monkeypatch.setattr(watchdog, "MIN_SILENCE_WALL_S", 0.5)
    monkeypatch.setattr(watchdog, "LOOK_S", 0.3)


def _wait(command: Command, port: int, **more: Any) -> Startup:
    settings: dict[str, Any] = {
        "budget_s": 30.0,
        "silence_s": 20.0,
        "clock": SystemClock(),
        "launched_at": time.time(),
        "log": command.log(),
    }
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        return ready.wait_ready(controller=command, plane=plane, **{**settings, **more})


@pytest.mark.parametrize("options", [(), ("--ready-route",)])
def test_the_moment_of_readiness_is_found_within_a_third_of_a_second(
    fake: Fake, port: int, tmp_path: Path, options: tuple[str, ...]
) -> None:
    stamp = tmp_path / "ready"
    command = fake("--stamp-ready", str(stamp), "--health-s", "0.5", *options)
    launched = time.time()
    command.start()
    seen: list[Progress] = []
    startup = _wait(command, port, launched_at=launched, progress=seen.append)
    truth = float(stamp.read_text()) - launched
    assert startup.ready_s == pytest.approx(truth, abs=0.3)
    assert startup.port_open_s is not None
    assert startup.first_token_s is not None
    assert startup.ready_s is not None
    assert 0.1 < startup.port_open_s < startup.ready_s < startup.first_token_s
    assert startup.observed
    assert startup.kind == "warm"
    assert startup.autotune_runs == 0
    assert startup.versions == {"sglang": "0.5.11"}
    assert startup.pid == command.state().pid
    assert [phase.id for phase in startup.phases][-3:] == ["warmup", "ready", "first_token"]
    until_ready = [phase for phase in startup.phases if phase.id not in ("ready", "first_token")]
    assert sum((phase.end_s or 0) - phase.begin_s for phase in until_ready) == pytest.approx(startup.ready_s, abs=0.01)
    assert seen
    assert seen[-1].elapsed_s > 0


def test_polling_asks_health_one_at_a_time_and_server_info_only_once_ready(fake: Fake, port: int) -> None:
    command = fake("--ready-after", "1.0", "--health-s", "0.3")
    command.start()
    _wait(command, port)
    with urlopen(f"http://127.0.0.1:{port}/asked", timeout=5) as answer:
        asked = json.loads(answer.read())
    paths = [path for _, path in asked]
    assert paths.count("/server_info") == 1
    assert paths.index("/server_info") > paths.index("/health")
    assert 4 <= paths.count("/health") <= 14


def test_a_server_that_dies_is_told_within_a_second_with_its_first_traceback(fake: Fake, port: int) -> None:
    command = fake("--fault", "dies")
    command.start()
    begin = time.monotonic()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port)
    assert time.monotonic() - begin < 5.0
    failed = caught.value
    assert (failed.kind, failed.phase, failed.exit_code) == ("died", "capture_decode", -9)
    assert failed.cause == "RuntimeError: the weights are not there"
    assert "run_scheduler_process" in failed.traceback
    assert failed.startup.ready_s is None
    assert "Received sigquit" in failed.last_lines[-1]
    assert str(failed).startswith("died in phase capture_decode after")
    assert "sesame" not in repr(failed.startup) + "".join(failed.last_lines)


def test_a_server_that_ends_without_a_word_is_told_with_its_exit_code(fake: Fake, port: int) -> None:
    command = fake("--fault", "exits")
    command.start()
    with pytest.raises(StartFailed, match="exit code 3") as caught:
        _wait(command, port)
    assert caught.value.exit_code == 3


class DeafOwner:
    """A controller whose service manager does not answer for a while."""

    kind = "systemd"

    def __init__(self, command: Command, seconds: float) -> None:
        self._command, self._until = command, time.monotonic() + seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._command, name)

    def state(self) -> ControlState:
        if time.monotonic() < self._until:
            return ControlState(active=False, result="unreadable", detail="could not ask systemctl: no bus")
        return self._command.state()


def test_a_service_manager_that_does_not_answer_is_no_death(fake: Fake, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine: systemctl times out while the server starts, and the server starts all the same."""
    monkeypatch.setattr(ready, "LAUNCH_S", 0.2)
    command = fake()
    command.start()
    startup = _wait(DeafOwner(command, 1.5), port, log=command.log())  # type: ignore[arg-type]
    assert startup.ready_s is not None
    assert command.state().active


def test_a_service_manager_that_never_answers_ends_in_silence_and_not_in_a_death(
    fake: Fake, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "LAUNCH_S", 0.2)
    command = fake("--fault", "hangs")
    command.start()
    with pytest.raises(StartFailed) as caught:
        _wait(DeafOwner(command, 600.0), port, log=command.log(), silence_s=4.0)  # type: ignore[arg-type]
    assert caught.value.kind == "hang"


class SetClock(SystemClock):
    """The machine's clock, set by somebody a moment after the wait began."""

    def __init__(self, by_s: float) -> None:
        self._by_s, self._from = by_s, time.monotonic() + 0.5

    def time(self) -> float:
        return time.time() + (self._by_s if time.monotonic() > self._from else 0.0)


@pytest.mark.parametrize("by_s", [-30.0, 30.0])
def test_a_start_in_which_the_clock_was_set_is_not_timed(fake: Fake, port: int, by_s: float) -> None:
    """NTP after a boot: set back by half a minute, a slow start looks like one within its budget."""
    command = fake()
    launched = time.time()
    command.start()
    startup = _wait(command, port, clock=SetClock(by_s), launched_at=launched)
    assert (startup.ready_s, startup.port_open_s, startup.phases) == (None, None, ())
    (told,) = [each for each in startup.findings if each.kind == "clock-set"]
    assert f"set by {by_s:+.1f} s during the start" in told.detail


def test_a_first_process_that_was_restarted_before_it_was_seen_is_a_death(fake: Fake, port: int) -> None:
    """Its owner has started it again by itself: the one that serves is not the one that was started."""
    command = fake()
    command.start()
    owner = DeafOwner(command, 0.0)
    real = command.state
    owner.state = lambda: msgspec.structs.replace(real(), restarts=1)  # type: ignore[method-assign]
    with pytest.raises(StartFailed, match="its owner restarted it by itself, 1 time"):
        _wait(owner, port, log=command.log())  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_silence_is_a_hang(fake: Fake, port: int) -> None:
    command = fake("--fault", "hangs")
    clock = FastClock(100.0)
    command.start()
    begin = time.monotonic()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port, clock=clock, launched_at=clock.time(), silence_s=100.0, budget_s=1500.0)
    assert time.monotonic() - begin < 20.0
    assert (caught.value.kind, caught.value.phase) == ("hang", "capture_decode")
    assert "no sign of progress for" in caught.value.cause


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["busy", "moves"])
def test_a_start_that_moves_is_no_hang_but_is_given_up_in_the_end(fake: Fake, port: int, fault: str) -> None:
    command = fake("--fault", fault)
    command.start()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port, silence_s=0.8, budget_s=1.0, give_up_s=1.6)
    assert caught.value.kind == "not ready"
    assert "it moves, but too slowly" in caught.value.cause


@pytest.mark.usefixtures("quick")
def test_a_changing_cache_is_progress(fake: Fake, port: int) -> None:
    command = fake("--fault", "hangs")
    command.start()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port, silence_s=0.8, budget_s=1.0, give_up_s=1.6, activity=time.time)
    assert caught.value.kind == "not ready"


@pytest.mark.usefixtures("quick")
def test_a_stopped_process_is_a_hang_that_says_so(fake: Fake, port: int) -> None:
    command = fake("--fault", "moves")
    command.start()
    pid = command.state().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StartFailed, match="SIGSTOP") as caught:
            _wait(command, port, silence_s=1.0)
        assert caught.value.kind == "hang"
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("quick")
def test_health_that_never_comes_up_is_a_hang_whatever_we_ourselves_cause_in_the_log(fake: Fake, port: int) -> None:
    command = fake("--fault", "never-up")
    command.start()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port, silence_s=1.0)
    assert (caught.value.kind, caught.value.phase) == ("hang", "warmup")


@pytest.mark.usefixtures("quick")
def test_ready_without_an_exact_completion_is_not_ready(fake: Fake, port: int) -> None:
    command = fake("--short", "3", "--health-s", "0.05")
    command.start()
    with pytest.raises(StartFailed) as caught:
        _wait(command, port)
    assert caught.value.kind == "not ready"
    assert "asked for exactly 16 tokens, got 13 with finish reason stop" in caught.value.cause
    assert caught.value.startup.ready_s is None


def test_over_the_budget_it_waits_on_and_the_time_is_simply_longer(fake: Fake, port: int) -> None:
    command = fake("--open-after", "1.0")
    launched = time.time()
    command.start()
    startup = _wait(command, port, launched_at=launched, budget_s=0.5)
    assert startup.ready_s is not None
    assert startup.ready_s > 1.0


def test_an_impostor_on_the_port_is_named(fake: Fake, port: int, tmp_path: Path) -> None:
    old = fake()
    old.start()
    _wait(old, port)

    class Elsewhere(Command):
        """Starts although the port is taken, as a real launcher would."""

        def start(self) -> None:
            self.log_at_start = self.log().end()
            self._launch()

    (tmp_path / "new").mkdir()
    new = Elsewhere(old._argv, url=f"http://127.0.0.1:{port}", clock=SystemClock(), run_dir=tmp_path / "new")
    new.start()
    try:
        with pytest.raises(StartFailed) as caught:
            _wait(new, port)
    finally:
        new.stop(0.2)
    assert caught.value.kind in ("not ready", "died")
    if caught.value.kind == "not ready":
        assert f"pid {old.state().pid}" in caught.value.cause
        assert "impostor" in [each.kind for each in caught.value.startup.findings]


def test_a_server_that_was_ready_before_gives_the_start_that_it_had(fake: Fake, port: int) -> None:
    command = fake()
    command.start()
    first = _wait(command, port)
    other = Command(command._argv, url=f"http://127.0.0.1:{port}", clock=SystemClock(), run_dir=command._run_dir)
    again = _wait(other, port, launched_at=other.state().started_at)
    assert first.observed
    assert not again.observed
    assert again.kind == "warm"
    assert again.ready_s == pytest.approx(first.ready_s, abs=1.1)


def test_a_server_that_was_launched_days_ago_has_time_to_answer(fake: Fake, port: int) -> None:
    """It is long over every budget of a start; busy with others' requests it takes seconds to answer."""
    command = fake("--health-s", "3")
    command.start()
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        while plane.health() != 200:
            time.sleep(0.05)
    command.log_at_start = None
    assert not _wait(command, port, launched_at=time.time() - 3 * 86_400.0, give_up_s=60.0).observed


def test_a_start_in_progress_is_followed_by_whoever_comes_later(fake: Fake, port: int) -> None:
    command = fake("--open-after", "1.0")
    command.start()
    other = Command(command._argv, url=f"http://127.0.0.1:{port}", clock=SystemClock(), run_dir=command._run_dir)
    startup = _wait(other, port, launched_at=other.state().started_at)
    assert startup.observed
    assert startup.ready_s is not None
    assert 1.0 < startup.ready_s < 5.0
    assert [phase.id for phase in startup.phases][:2] != []


def test_the_start_of_a_running_server_is_read_from_its_log(recorded: Callable[[str], str], fake: Fake) -> None:
    text = recorded("sglang-0.5.11-h200-compile-warm") + recorded("sglang-0.5.11-h200-compile-cold")
    startup = ready.read_start(controller=fake(), log=TextLog(text), clock=SystemClock(), version="0.5.11")
    assert (startup.kind, startup.autotune_runs, startup.capture_s, startup.ready_s) == ("cold", 10, 163.96, 213.0)
    assert (startup.launched_at_is, startup.observed) == ("first line", False)
    assert startup.first_token_s is None


def test_a_log_that_holds_no_such_start_says_so(fake: Fake, recorded: Callable[[str], str]) -> None:
    command = fake()
    startup = ready.read_start(
        controller=command, log=TextLog("", name="nothing", why="the rig file names no log"), clock=SystemClock()
    )
    assert startup.kind == "unknown"
    assert startup.autotune_runs is None
    assert startup.findings[0].kind == "log-unreadable"
    assert "names no log" in startup.findings[0].detail


def test_the_start_is_chosen_by_its_launch_time(recorded: Callable[[str], str]) -> None:
    lines = split(recorded("sglang-0.5.11-h200-compile-cold") + recorded("sglang-0.5.11-h200-compile-warm"))
    echo = [line.time for line in lines if line.text.startswith("server_args=")]
    assert echo[1] is not None
    assert [line.time for line in select(lines, echo[1] - 20) if line.text.startswith("server_args=")] == [echo[1]]
    assert select(lines, echo[1] + 100) == []
    assert select([], None) == []


def test_without_a_log_readiness_is_judged_from_outside(fake: Fake, port: int) -> None:
    command = fake("--ready-route", "--health-s", "0.05")
    command.start()
    startup = _wait(command, port, log=TextLog("", why="the rig file names no log"))
    assert startup.ready_s is not None
    assert startup.kind == "unknown"
    assert [phase.id for phase in startup.phases] == ["launch", "warmup", "ready", "first_token"]
    assert startup.autotune_runs is None


@pytest.mark.usefixtures("quick")
def test_a_pause_of_our_own_is_not_held_against_the_server(fake: Fake, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = fake("--open-after", "1.6")
    command.start()
    real, paused = time.sleep, threading.Event()

    def sleep(seconds: float) -> None:
        if seconds == ready.POLL_S and not paused.is_set():
            paused.set()
            real(1.4)
        real(seconds)

    monkeypatch.setattr(ready.time, "sleep", sleep)
    assert _wait(command, port, silence_s=1.3).ready_s is not None
    assert paused.is_set()
