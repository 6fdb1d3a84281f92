"""What can go wrong with a real SGLang that serves: somebody else on its port, a stopped scheduler, a killed one.

One server, about 20 s to start; it goes through all of it in this order, and the tests look at what was seen.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from engine_servers import HERE, free_port

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.server import deaths, ready
from pytest_sglang.server.command import Command
from pytest_sglang.server.control import ControlError
from pytest_sglang.server.http import Completion, ControlPlane
from pytest_sglang.server.ready import StartFailed


class Elsewhere(Command):
    """Starts although the port is taken, as a real launcher would."""

    def start(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self.log_at_start = self.log().end()
        self._launch()


class Seen(NamedTuple):
    """What was seen of the server's life."""

    startup: Startup
    pid: int
    scheduler: int
    refused: str
    impostor: StartFailed
    stuck: StartFailed
    stuck_s: float
    goes_on: Completion
    died: StartFailed
    died_s: float
    obituary: str
    left: list[psutil.Process]


def _wait(command: Command, port: int, **more: Any) -> Startup:
    settings: dict[str, Any] = {"budget_s": 300.0, "silence_s": 120.0, "launched_at": command.state().started_at or time.time()}
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        return ready.wait_ready(controller=command, plane=plane, log=command.log(), clock=SystemClock(), **{**settings, **more})


def _failing(call: Callable[[], Startup]) -> tuple[StartFailed, float]:
    """How the wait failed, and when."""
    with pytest.raises(StartFailed) as caught:
        call()
    return caught.value, time.monotonic()


def _scheduler(pid: int) -> psutil.Process:
    found = [each for each in psutil.Process(pid).children(recursive=True) if "scheduler" in " ".join(each.cmdline())]
    assert found, [each.cmdline() for each in psutil.Process(pid).children(recursive=True)]
    return found[0]


@pytest.fixture(scope="module")
def seen(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A server started, its port coveted, its scheduler stopped, continued, stopped and killed."""
    port, folder = free_port(), tmp_path_factory.mktemp("life")
    argv = ("bash", str(HERE / "engine" / "serve.sh"), str(engine), str(port))
    url, clock, env = f"http://127.0.0.1:{port}", SystemClock(), {"HOME": str(folder)}
    command = Command(argv, url=url, clock=clock, run_dir=folder / "run", env=env)
    second = Elsewhere(argv, url=url, clock=clock, run_dir=folder / "second", env=env)
    try:
        command.start()
        startup = _wait(command, port)
        pid = command.state().pid
        assert pid is not None
        tree, scheduler = psutil.Process(pid).children(recursive=True), _scheduler(pid)
        with pytest.raises(ControlError) as refused:
            Command(argv, url=url, clock=clock, run_dir=folder / "third", env=env).start()
        second.start()
        impostor, _ = _failing(lambda: _wait(second, port))
        second.stop(1.0)

        scheduler.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        stuck, ended = _failing(lambda: _wait(command, port, silence_s=6.0))
        stuck_s = ended - begin
        scheduler.send_signal(signal.SIGCONT)
        with ControlPlane(url) as plane:
            goes_on = plane.complete(16, timeout_s=60.0)

        # stopped first, so that the wait is still in the middle of it
        scheduler.send_signal(signal.SIGSTOP)
        gone: list[float] = []
        threading.Thread(target=_kill_and_see, args=(scheduler, psutil.Process(pid), gone)).start()
        died, told = _failing(lambda: _wait(command, port))
        died_s = told - gone[0] if gone else 0.0
        obituary, _ = deaths.while_serving(command.state(), command.log(), deaths.Evidence(pids=frozenset({scheduler.pid})))
        left = [each for each in psutil.wait_procs(tree, timeout=20.0)[1] if each.status() != psutil.STATUS_ZOMBIE]
    finally:
        second.stop(1.0)
        command.stop(20.0)
    return Seen(startup, pid, scheduler.pid, str(refused.value), impostor, stuck, stuck_s, goes_on, died, died_s, obituary, left)


def _kill_and_see(scheduler: psutil.Process, main: psutil.Process, gone: list[float]) -> None:
    """kill -9, and when the main process was gone after it."""
    time.sleep(2.0)
    os.kill(scheduler.pid, signal.SIGKILL)
    while main.is_running() and main.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    gone.append(time.monotonic())


def test_a_start_has_all_its_phases(seen: Seen) -> None:
    found = [each.id for each in seen.startup.phases]
    assert [each for each in found if each != "capture_prefill"] == [
        "launch",
        "arguments",
        "distributed",
        "weights",
        "kv_cache",
        "capture_decode",
        "port_open",
        "warmup",
        "ready",
        "first_token",
    ] or "capture_decode" not in found
    assert {"arguments", "weights", "kv_cache", "warmup", "ready"} <= set(found)
    assert seen.startup.ready_s is not None
    total = sum((each.end_s or 0) - each.begin_s for each in seen.startup.phases if each.id not in ("ready", "first_token"))
    assert total == pytest.approx(seen.startup.ready_s, abs=2)
    assert seen.startup.versions["sglang"] == "0.5.23"
    assert seen.startup.first_request_s is not None


def test_an_occupied_port_is_refused_before_anything_is_started(seen: Seen) -> None:
    assert f"pid {seen.pid}" in seen.refused
    assert "is taken by" in seen.refused


def test_an_occupied_port_is_seen_where_a_start_was_made_all_the_same(seen: Seen) -> None:
    assert seen.impostor.kind == "not ready"
    assert f"the port is served by pid {seen.pid} (running for" in seen.impostor.cause
    assert "sglang.launch_server" in seen.impostor.cause
    assert seen.impostor.startup.ready_s is None


def test_a_stopped_scheduler_is_stuck_and_named(seen: Seen) -> None:
    assert seen.stuck.kind == "hang", seen.stuck
    assert "stopped by somebody (SIGSTOP)" in seen.stuck.cause
    assert f"pid {seen.scheduler}" in seen.stuck.cause
    assert 6.0 < seen.stuck_s < 60.0
    assert seen.goes_on.ok, "continued, it serves again"


def test_the_stacks_of_a_stuck_server_are_told(seen: Seen) -> None:
    if deaths.py_spy() is None or not seen.stuck.stacks:
        pytest.skip("py-spy may not look into processes here")
    assert f"pid {seen.scheduler} sglang::scheduler" in seen.stuck.stacks
    assert "event_loop" in seen.stuck.stacks


def test_a_killed_scheduler_is_noticed_within_a_second_of_the_servers_end(seen: Seen) -> None:
    assert seen.died.kind == "died", seen.died
    # SGLang's own watcher looks once a second; from the end of its main process on it is ours
    assert seen.died_s < 3.0
    assert seen.died.exit_code in (-9, 137)
    assert "crashed with exit code -9" in seen.died.cause
    assert str(seen.scheduler) in seen.died.cause
    assert seen.obituary == seen.died.cause
    assert seen.left == []
