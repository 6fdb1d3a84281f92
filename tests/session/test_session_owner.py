"""An owner's server: running before, running after, whatever came in between; one that cannot be started again is never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from session_engine import FAKE, container_pid, engine_calls, make_engine
from session_fakes import dead_journal

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.rig import load
from pytest_sglang.server import control
from pytest_sglang.server.container import Container
from pytest_sglang.server.control import ControlError, ControlState
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.session import opening
from pytest_sglang.session.deployment import Deployment
from pytest_sglang.session.errors import Inconclusive, NotChecked
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.server import SglangServer
from pytest_sglang.session.serving import Serving
from pytest_sglang.session.undo import undo
from pytest_sglang.simulator.rig import free_port

Opened = Callable[..., Deployment]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Its container is ended after everything else: closing a run may have started it again."""
    yield
    if (tmp_path / "engine").exists():
        try:
            os.kill(container_pid(tmp_path / "engine"), signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def engine(tmp_path: Path, port: int, nothing_left: None) -> list[str]:
    """A container that serves."""
    cli = make_engine(tmp_path / "engine", port)
    subprocess.run([*cli, "start"], check=True)
    serves(port)
    return cli


@pytest.fixture
def opened(
    tmp_path: Path, port: int, state: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Opened]:
    """Open a run on a rig file with this owner; it is closed in the end."""
    made: list[Deployment] = []

    def make(owner: str, **options: Any) -> Deployment:
        if "container" in owner:
            cli = request.getfixturevalue("engine")
            monkeypatch.setattr(
                control, "make", lambda server, *, clock, run_dir, **_: Container("sglang", url=server.url, clock=clock, cli=cli)
            )
        path = tmp_path / "rig.toml"
        path.write_text(
            f'schema = 1\n[rig]\nname = "house"\n[server]\nurl = "http://127.0.0.1:{port}"\n{owner}\n[start]\nwarm = "60 s"\nsilence = "20 s"\n'
        )
        settings: dict[str, Any] = {"rootdir": tmp_path, "report_dir": tmp_path / "reports", "allow_restart": True, **options}
        deployment, _ = opening.open_run(load.load(path), RunOptions(**settings), progress=lambda text: None)
        made.append(deployment)
        return deployment

    yield make
    for each in made:
        each.close()


def serves(port: int) -> None:
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        deadline = time.monotonic() + 30
        while plane.health() != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


CONTAINER = 'container = "sglang"'


def test_a_container_is_restarted_and_is_another_process(opened: Opened, port: int, tmp_path: Path) -> None:
    deployment = opened(CONTAINER)
    before = container_pid(tmp_path / "engine")
    startup = deployment.server.restart()
    assert startup.pid == container_pid(tmp_path / "engine") != before
    deployment.close()
    serves(port)
    assert engine_calls(tmp_path / "engine") == ["start", "stop", "start"]
    assert list((tmp_path / "state" / "journal").glob("*")) == []


def test_a_container_that_was_stopped_runs_again_after_an_error(opened: Opened, port: int, tmp_path: Path) -> None:
    deployment = opened(CONTAINER)
    deployment.server.stop()
    deployment.close()
    serves(port)
    assert engine_calls(tmp_path / "engine") == ["start", "stop", "start"]
    assert deployment.as_left["server"]["active"]


def test_a_server_that_does_not_come_back_is_no_pass(opened: Opened, port: int, state: Path, tmp_path: Path) -> None:
    deployment = opened(CONTAINER)
    deployment.server.stop()
    (tmp_path / "engine" / "refuses-start").touch()
    deployment.close()
    kinds = [each.kind for each in deployment.recorder.run.findings]
    assert "not-put-back" in kinds
    assert deployment.recorder.verdict(require_all=False) == "inconclusive"
    assert list((tmp_path / "state" / "journal").glob("*.jsonl")), "the guard goes on trying"
    (tmp_path / "engine" / "refuses-start").unlink()
    undo(state, force_owner=True)
    serves(port)
    deployment.guard.forget()


def test_a_stop_that_is_refused_leaves_it_running(opened: Opened, port: int, tmp_path: Path) -> None:
    deployment = opened(CONTAINER)
    before = container_pid(tmp_path / "engine")
    (tmp_path / "engine" / "refuses-stop").touch()
    with pytest.raises(ControlError, match="permission denied"):
        deployment.server.restart()
    deployment.close()
    serves(port)
    assert container_pid(tmp_path / "engine") == before


def test_nothing_is_stopped_under_others_requests(opened: Opened, port: int, tmp_path: Path) -> None:
    deployment = opened(CONTAINER)
    (tmp_path / "engine" / "load").write_text("0 1")
    with pytest.raises(Inconclusive, match="0 running, 1 waiting"):
        deployment.server.restart()
    assert engine_calls(tmp_path / "engine") == ["start"]
    assert deployment.stopped_entry is None


def test_a_start_that_brought_the_process_of_before_is_refused(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner that says that it stopped and started, and did neither."""
    deployment = opened(CONTAINER)
    monkeypatch.setattr(Container, "stop", lambda self, grace_s: None)
    with pytest.raises(ControlError, match=f"pid {container_pid(tmp_path / 'engine')} is the process that ran before"):
        deployment.server.restart()


def test_a_dead_run_s_container_is_started_by_whoever_undoes(state: Path, engine: list[str], port: int, tmp_path: Path) -> None:
    description = {"kind": "container", "name": "sglang", "url": f"http://127.0.0.1:{port}", "log": None, "cli": engine}
    journal = dead_journal(state)
    journal.record("server", "sglang", {"active": True, "pid": container_pid(tmp_path / "engine")}, {"active": False}, description)
    journal.close()
    subprocess.run([*engine, "stop"], check=True)
    (outcome,) = undo(state)
    assert outcome.action == "undone", outcome.detail
    serves(port)


def test_an_attached_server_is_never_stopped(opened: Opened, port: int) -> None:
    with subprocess.Popen([sys.executable, "-S", str(FAKE), "--port", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            serves(port)
            deployment = opened("", allow_cold=True)
            for act in (deployment.server.stop, deployment.server.restart, deployment.server.start):
                with pytest.raises(NotChecked, match="no way to start it again"):
                    act()
            deployment.close()
            assert server.poll() is None
        finally:
            server.kill()


def test_a_command_of_the_run_s_own_ends_with_it(opened: Opened, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' requests do not count: nobody but the run knows of it."""
    monkeypatch.setattr(Deployment, "stop_grace_s", 1.0)
    command = ", ".join(f'"{word}"' for word in (sys.executable, "-S", str(FAKE), "--port", str(port), "--ignore-term", "--orphan"))
    deployment = opened(f"command = [{command}]")
    deployment.server.ensure_running()
    assert deployment.plane.running_requests() == 3
    pid = deployment.controller.state().pid
    deployment.server.stop()  # in no check: the run's own finding
    found = deployment.recorder.run.findings
    assert [each.kind for each in found] == ["sigterm-ignored"]
    assert pid is not None
    assert not os.path.exists(f"/proc/{pid}")
    deployment.server.start()
    deployment.close()
    assert not deployment.answers()
    assert deployment.controller.state().result == "timeout"


def test_a_start_that_brought_nothing_is_told_though_systemd_s_stamp_is_never_twice_the_same() -> None:
    clock, began = SystemClock(), time.monotonic() - 4000.0

    def unit(pid: int, started: float) -> ControlState:
        return ControlState(active=True, pid=pid, started_at=clock.from_monotonic(started))

    def after(now: ControlState) -> None:
        owner = SimpleNamespace(subject="sglang.service", state=lambda: now)
        server = SglangServer(SimpleNamespace(controller=owner), None)  # type: ignore[arg-type]
        server._before_stop = Serving.of(before)
        server._is_another_process()

    before = unit(4711, began)
    after(unit(4712, began + 4000.0))
    after(unit(4711, began + 4000.0))  # the same number, given again
    with pytest.raises(ControlError, match="pid 4711 is the process that ran before"):
        after(unit(4711, began))
    with pytest.raises(ControlError, match="pid 4711 is the process that ran before"):
        after(ControlState(active=True, pid=4711))


def test_the_kernel_tells_whether_a_pid_was_given_again() -> None:
    """A container's owner tells no start, and pids come again soon where few are free."""
    before = Serving(4711, 100, None)
    assert not Serving(4711, 100, None).is_other(before)
    assert Serving(4711, 101, None).is_other(before)
    assert Serving(4712, 100, None).is_other(before)
    # the kernel's word stands above a stamp that moves with the machine's clock
    assert not Serving(4711, 100, 50.0).is_other(Serving(4711, 100, 10.0))
    assert Serving(4711, None, 50.0).is_other(Serving(4711, None, 10.0))


def test_a_measurement_under_which_the_server_was_started_anew_with_the_same_pid_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = SimpleNamespace(subject="sglang.service", state=lambda: ControlState(active=True, pid=4711))
    server = SglangServer(SimpleNamespace(controller=owner), None)  # type: ignore[arg-type]
    monkeypatch.setattr("pytest_sglang.session.serving.started_ticks", lambda pid: 200)
    server._same_process(Serving(4711, 200, None))
    with pytest.raises(Inconclusive, match="restarted during the measurement"):
        server._same_process(Serving(4711, 100, None))


def test_a_server_whose_process_its_owner_never_told_is_not_taken_for_the_one_that_was_started() -> None:
    """systemctl stopped answering after the start was asked for: an old server on the port would have been ready as well."""
    state = ControlState(active=False, result="unreadable", detail="could not ask systemctl: no bus")
    owner = SimpleNamespace(subject="sglang.service", kind="systemd", state=lambda: state)
    server = SglangServer(SimpleNamespace(controller=owner), None)  # type: ignore[arg-type]
    with pytest.raises(Inconclusive, match="whether it is the one that was started cannot be read: could not ask systemctl"):
        server._is_known(Startup(kind="warm", launched_at=0.0))
    server._is_known(Startup(kind="warm", launched_at=0.0, pid=4711))
