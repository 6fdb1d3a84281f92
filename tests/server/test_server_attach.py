from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import control, deaths
from pytest_sglang.server.attach import Attach
from pytest_sglang.server.control import ControlError, ControlState
from pytest_sglang.server.log import split
from pytest_sglang.server.phases import timeline


def test_a_server_started_by_somebody_else_is_seen_before_and_after_its_port_opens(tmp_path: Path, port: int) -> None:
    script = tmp_path / "sglang" / "launch_server.py"
    script.parent.mkdir()
    shutil.copy(Path(__file__).parent / "fake_sglang.py", script)
    attach = Attach(f"http://127.0.0.1:{port}", clock=SystemClock(), log=str(tmp_path / "log"))
    assert attach.state() == ControlState(active=False, detail="nobody listens")
    argv = [sys.executable, "-S", str(script), "--port", str(port), "--open-after", "1.5"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(argv, stderr=log, env={**os.environ, "GREETING": "hello"}) as server:
        try:
            deadline = time.monotonic() + 20
            while not attach.state().active and time.monotonic() < deadline:
                time.sleep(0.02)
            starting = attach.state()
            assert (starting.active, starting.pid, starting.detail) == (True, server.pid, "starting, its port is closed")
            deadline = time.monotonic() + 20
            while attach.state().detail != f"listens on port {port}" and time.monotonic() < deadline:
                time.sleep(0.05)
            state = attach.state()
            assert (state.active, state.pid) == (True, server.pid)
            assert state.started_at == pytest.approx(time.time(), abs=45)
            assert attach.environment()["GREETING"] == "hello"
            assert str(script) in attach.argv()
            assert "server_args" in attach.log().read()
            assert [(each.kind, each.severity) for each in attach.findings(None)] == [("attach-only", "info")]
        finally:
            server.kill()


def test_it_is_never_started_nor_stopped(port: int) -> None:
    attach = Attach(f"http://127.0.0.1:{port}", clock=SystemClock())
    assert "no way to start it again" in (attach.may_control() or "")
    with pytest.raises(ControlError, match="cannot be started"):
        attach.start()
    with pytest.raises(ControlError, match="is not stopped"):
        attach.stop(1.0)
    assert attach.log().why == "the rig file names no log (server.log)"
    assert control.from_description(attach.description()).description() == attach.description()


def test_another_machine_claims_nothing() -> None:
    state = Attach("http://192.0.2.1:8001", clock=SystemClock()).state()
    assert (state.active, state.result) == (False, "unreadable")
    assert "not this machine" in state.detail


EMPTY = timeline([])


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (ControlState(active=False, result="oom-kill", exit_code=-9), "its owner says oom-kill"),
        (ControlState(active=False, result="signal", exit_code=-9), "no sign of want of memory"),
        (ControlState(active=False, result="exit-code", exit_code=137), "no sign of want of memory"),
        (ControlState(active=False, result="exit-code", exit_code=2), "exit code 2"),
        (ControlState(active=False, result="signal", exit_code=-11), "signal 11"),
        (ControlState(active=False, result="start-limit-hit"), "start-limit-hit"),
        (ControlState(active=False, result="timeout", exit_code=-15), "TimeoutStartSec"),
        (ControlState(active=False, detail="inactive (dead)"), "inactive (dead)"),
    ],
)
def test_the_cause_of_a_death_is_only_what_can_be_proved(state: ControlState, cause: str) -> None:
    assert cause in deaths.cause(state, EMPTY, {4711}, dmesg=("true",))


def test_the_kernel_is_blamed_by_its_own_line_about_this_very_process() -> None:
    line = "[123.4] Out of memory: Killed process 4711 (sglang::schedul) total-vm:1kB"
    killed = ControlState(active=False, result="signal", exit_code=-9)
    assert "Killed process 4711" in deaths.cause(killed, EMPTY, {4711}, dmesg=("echo", line))
    assert "no sign of want of memory" in deaths.cause(killed, EMPTY, {99}, dmesg=("echo", line))
    assert deaths.kernel_killed(set()) is None


def test_the_first_traceback_comes_before_everything() -> None:
    log = (
        "[2026-01-02 03:04:05] server_args={'model_path': 'm'}\n"
        "[2026-01-02 03:04:05] Scheduler hit an exception: Traceback (most recent call last):\n  x\nValueError: bad\n"
    )
    found = timeline(split(log))
    assert deaths.cause(ControlState(active=False, result="oom-kill", exit_code=-9), found, set()) == "ValueError: bad"


def test_stacks_are_taken_where_py_spy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert deaths.stacks([1]) == ""
    tool = tmp_path / "py-spy"
    tool.write_text('#!/bin/sh\necho "Process $3: python"\n')
    tool.chmod(0o755)
    assert deaths.stacks([1, 2]) == "Process 1: python\n\nProcess 2: python"
