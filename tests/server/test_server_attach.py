from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import control
from pytest_sglang.server.attach import Attach
from pytest_sglang.server.control import ControlError, ControlState


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
            assert attach.findings(None) == []
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
