from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import control
from pytest_sglang.server.command import Command, exit_text
from pytest_sglang.server.control import ControlError

Fake = Callable[..., Command]


def _until(true: Callable[[], object], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def test_a_command_runs_until_it_is_stopped_and_leaves_nothing(fake: Fake, port: int) -> None:
    command = fake("--child")
    assert command.may_control() is None
    assert not command.state().active
    before = time.time()
    command.start()
    state = command.state()
    assert state.active
    assert state.pid is not None
    assert state.started_at == pytest.approx(before, abs=5)
    assert "fake_sglang.py" in " ".join(command.argv())
    assert _until(lambda: len(psutil.Process(state.pid).children()) == 1)
    tree = [psutil.Process(state.pid), *psutil.Process(state.pid).children()]
    assert _until(lambda: "server_args" in command.log().read())
    command.stop(0.3)
    assert not any(each.is_running() and each.status() != "zombie" for each in tree)
    ended = command.state()
    assert (ended.active, ended.result, ended.exit_code) == (False, "signal", -15)


def test_a_server_that_ignores_sigterm_is_killed_with_its_orphans(fake: Fake) -> None:
    command = fake("--ignore-term", "--orphan")
    command.start()
    pid = command.state().pid
    assert _until(psutil.Process(pid).children)
    orphan = psutil.Process(pid).children()[0]
    command.stop(0.2)
    assert command.state().exit_code == -9
    assert not orphan.is_running()


def test_what_a_dead_server_leaves_behind_is_a_finding_until_it_is_stopped(fake: Fake) -> None:
    command = fake("--orphan", "--fault", "dies")
    command.start()
    assert _until(lambda: not command.state().active)
    assert command.state().exit_code == -9
    assert _until(lambda: command.findings(None))
    finding = command.findings(None)[0]
    assert (finding.kind, finding.severity) == ("orphans", "fail")
    command.stop(0.2)
    assert command.findings(None) == []


def test_kill_9_of_the_launcher_leaves_nothing(tmp_path: Path, port: int) -> None:
    code = f"""
import sys, time
from pathlib import Path
from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import command as module
module.ORPHAN_GRACE_S = 1.0
command = module.Command({(sys.executable, "-S", str(Path(__file__).parent / "fake_sglang.py"), "--port", str(port), "--orphan")!r},
    url="http://127.0.0.1:{port}", clock=SystemClock(), run_dir=Path({str(tmp_path)!r}))
command.start()
print(command.state().pid, flush=True)
time.sleep(60)
"""
    root = str(Path(__file__).parent.parent.parent)
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True)
    assert run.stdout is not None
    server = psutil.Process(int(run.stdout.readline()))
    assert _until(server.children)
    reaper = server.parent()
    assert reaper is not None
    everything = [server, *server.children(), reaper]
    run.kill()
    run.wait()
    run.stdout.close()
    # the orphan ignores SIGTERM, so this takes the grace that the reaper gives
    assert _until(lambda: not any(each.is_running() and each.status() != "zombie" for each in everything), within_s=9.0)


def test_kill_9_of_the_reaper_takes_the_server_with_it(fake: Fake) -> None:
    command = fake()
    command.start()
    server = psutil.Process(command.state().pid)
    reaper = server.parent()
    assert reaper is not None
    reaper.kill()
    assert _until(lambda: not server.is_running() or server.status() == "zombie")
    assert _until(lambda: not command.state().active)
    assert "reaper" in command.state().detail


def test_ci_tracking_variables_reach_neither_reaper_nor_server(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_TRACKING_ID", "github_1")
    monkeypatch.setenv("BUILD_ID", "7")
    command = fake(env={"GREETING": "hello"})
    command.start()
    environment = command.environment()
    assert environment["GREETING"] == "hello"
    assert "RUNNER_TRACKING_ID" not in environment
    reaper = psutil.Process(command.state().pid).parent()
    assert reaper is not None
    assert "BUILD_ID" not in reaper.environ()


def test_an_occupied_port_is_refused_naming_its_holder(fake: Fake, port: int) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(ControlError, match=f"port {port} is taken by pid {os.getpid()}"):
            fake().start()


def test_a_second_start_of_a_running_command_is_refused(fake: Fake) -> None:
    command = fake()
    command.start()
    with pytest.raises(ControlError, match="running already"):
        command.start()


def test_a_program_that_is_not_there_is_told_before_anything_is_started(tmp_path: Path) -> None:
    command = Command(["no-such-program"], url="http://127.0.0.1:1", clock=SystemClock(), run_dir=tmp_path)
    assert "'no-such-program' is not a program here" in (command.may_control() or "")
    with pytest.raises(ControlError, match="no-such-program"):
        command.start()
    command.stop(0.1)


def test_a_program_that_cannot_be_executed_ends_with_127_and_says_why(tmp_path: Path) -> None:
    program = tmp_path / "text"
    program.write_text("not a program")
    program.chmod(0o755)
    command = Command([str(program)], url="http://127.0.0.1:1", clock=SystemClock(), run_dir=tmp_path)
    command.start()
    assert _until(lambda: command.state().exit_code == 127)
    assert "Exec format error" in command.log().read()
    command.stop(0.1)


def test_another_process_ends_a_described_command_but_cannot_start_it(fake: Fake, tmp_path: Path) -> None:
    command = fake("--child")
    command.start()
    pid = command.state().pid
    description = json.loads(json.dumps(command.description()))
    other = control.from_description(description)
    assert other.state().pid == pid
    other.stop(5.0)
    assert not psutil.pid_exists(pid or 0) or psutil.Process(pid).status() == "zombie"
    with pytest.raises(ControlError, match="a run that is over"):
        other.start()


def test_a_sigterm_to_the_reaper_ends_the_tree(fake: Fake) -> None:
    command = fake()
    command.start()
    server = psutil.Process(command.state().pid)
    reaper = server.parent()
    assert reaper is not None
    reaper.send_signal(signal.SIGINT)
    reaper.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert server.is_running()
    reaper.terminate()
    assert _until(lambda: not command.state().active)
    assert command.state().exit_code == -15


def test_log_and_position_at_start_tell_two_starts_apart(fake: Fake) -> None:
    command = fake("--fault", "exits")
    command.start()
    assert _until(lambda: command.state().exit_code == 3)
    first = command.log().read()
    command.start()
    assert _until(lambda: command.state().exit_code == 3)
    # lines, not characters: the second process may have a longer pid
    assert _until(lambda: len(command.log().tail_from(command.log_at_start)[0].splitlines()) == len(first.splitlines()))


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit 0"), (3, "exit 3"), (-9, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_exit_codes_are_told(code: int, text: str) -> None:
    assert exit_text(code) == text
