"""Starts on a real systemd, judged: in time, flapping, timed out, never ready, one too many."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from systemd_units import RealUnit, systemctl, until

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server import identity, ready
from pytest_sglang.server.systemd import Systemd

Make = Callable[..., RealUnit]


def wait_ready(unit: RealUnit, controller: Systemd, **more: Any) -> Startup:
    settings: dict[str, Any] = {"budget_s": 60.0, "silence_s": 60.0, "launched_at": time.time(), **more}
    with unit.plane() as plane:
        return ready.wait_ready(controller=controller, plane=plane, log=controller.log(), clock=SystemClock(), **settings)


def failed(unit: RealUnit, controller: Systemd, **more: Any) -> ready.StartFailed:
    with pytest.raises(ready.StartFailed) as caught:
        wait_ready(unit, controller, **more)
    return caught.value


def kinds(controller: Systemd, cold_s: float = 1500.0) -> dict[str, str]:
    return {each.kind: each.severity for each in controller.findings(StartPromise(cold_s=cold_s, warm_s=90.0))}


def test_a_restart_is_timed_and_answers_with_its_own_process(make_unit: Make) -> None:
    unit = make_unit(options="--ready-after 0.5")
    old = unit.start()
    controller = unit.controller()
    controller.stop(5.0)
    asked = time.time()
    controller.start()
    startup = wait_ready(unit, controller, launched_at=asked)
    assert startup.pid == unit.main_pid() != old
    assert 0.5 < (startup.ready_s or 0) < time.time() - asked
    assert (startup.port_open_s or 0) < (startup.ready_s or 0)
    assert {"weights", "capture_decode", "port_open", "ready"} <= {each.id for each in startup.phases}
    with unit.plane() as plane:
        found = identity.identify(unit.url, unit.promise, controller.state(), plane, SystemClock(), asked)
    assert found.findings == ()
    assert found.pid == startup.pid
    assert kinds(controller) == {}


def test_a_unit_that_flaps_is_judged(make_unit: Make) -> None:
    """Restart=always hides every death: a look at the unit alone shows it active."""
    unit = make_unit("Restart=always\nRestartSec=0.3", "StartLimitIntervalSec=0", options="--fault exits")
    controller = unit.controller()
    controller.start()
    error = failed(unit, controller)
    assert error.kind == "died"
    assert "restarted it by itself" in str(error) or error.exit_code == 3, str(error)
    until(lambda: int(unit.shown("NRestarts")) >= 3)
    assert (controller.state().restarts or 0) >= 3
    assert kinds(controller)["restarted-by-itself"] == "fail"


def test_a_unit_that_died_once_since_it_was_started_is_a_warning(make_unit: Make) -> None:
    unit = make_unit("Restart=always\nRestartSec=0.1")
    first = unit.start()
    systemctl("kill", "--signal=KILL", unit.file)
    until(lambda: unit.main_pid() not in (0, first))
    assert kinds(unit.controller()) == {"restarted-by-itself": "warn"}


def test_a_unit_that_gave_up_says_so(make_unit: Make) -> None:
    unit = make_unit("Restart=always\nRestartSec=0.1", "StartLimitIntervalSec=60\nStartLimitBurst=2", options="--fault exits")
    controller = unit.controller()
    controller.start()
    until(lambda: unit.shown("ActiveState") == "failed")
    assert not controller.state().active
    found = kinds(controller)
    assert found["restarted-by-itself"] == "warn"
    assert controller.state().exit_code == 3


def test_a_notify_unit_whose_time_out_is_shorter_than_its_start(make_unit: Make) -> None:
    """systemd ends it after 5 s and the log shows no error: before the start that is a finding, after it the cause."""
    unit = make_unit("Type=notify\nTimeoutStartSec=5", options="--notify --open-after 60")
    controller = unit.controller()
    (finding,) = controller.findings(StartPromise(cold_s=1500.0, warm_s=90.0))
    assert (finding.kind, finding.severity) == ("unit-timeout", "fail")
    assert "systemd gives the start 5" in finding.detail
    assert "25 min" in finding.detail
    assert "TimeoutStartSec=" in (finding.remedy or "")
    begun = time.monotonic()
    controller.start()
    assert time.monotonic() - begun < 3, "the start command must not be waited for"
    error = failed(unit, controller)
    assert 4 < time.monotonic() - begun < 20
    assert error.kind == "died"
    assert "TimeoutStartSec" in error.cause
    assert controller.state().result == "timeout"


def test_a_notify_unit_with_time_enough_is_ready(make_unit: Make) -> None:
    unit = make_unit("Type=notify\nTimeoutStartSec=30min", options="--notify --open-after 1")
    controller = unit.controller()
    assert kinds(controller) == {}
    controller.start()
    assert controller.state().active
    assert (wait_ready(unit, controller).ready_s or 0) > 1
    assert unit.shown("ActiveState") == "active"


def test_a_unit_that_never_becomes_ready(make_unit: Make) -> None:
    """The port is open, /v1/models answers, the log says nothing: for systemd it is active and running."""
    unit = make_unit(options="--fault never-up")
    controller = unit.controller()
    controller.start()
    error = failed(unit, controller, silence_s=2.0)
    assert error.kind == "hang", str(error)
    assert unit.shown("ActiveState") == "active"
    assert error.startup.ready_s is None
    with unit.plane() as plane:
        assert plane.models()


def test_a_start_whose_exec_start_pre_fails_names_it(make_unit: Make) -> None:
    unit = make_unit("ExecStartPre=/bin/false")
    controller = unit.controller()
    controller.start()
    error = failed(unit, controller)
    assert error.kind == "died"
    assert error.elapsed_s < 10


def test_restarts_that_would_use_up_the_start_limit_are_refused_before(make_unit: Make) -> None:
    """Beyond StartLimitBurst systemd refuses the owner's own next start as well, so the last one is left to the owner."""
    unit = make_unit(unit="StartLimitIntervalSec=1h\nStartLimitBurst=3")
    pid = unit.start()
    controller = unit.controller()
    assert controller.may_control() is None, "one start was made by the owner: ours is the second"
    controller.stop(5.0)
    controller.start()
    until(unit.main_pid)
    until(lambda: controller.may_control())
    why = controller.may_control() or ""
    assert "2 starts in 60 min" in why
    assert "StartLimitBurst=3" in why
    # another process, which has made no start, knows it too: the journal tells
    assert "2 starts" in (unit.controller().may_control() or "")
    assert kinds(controller)["start-limit"] == "warn"
    assert unit.main_pid() not in (0, pid), "nothing was stopped"
    systemctl("stop", unit.file)
    systemctl("start", unit.file)  # the owner's


def test_a_server_that_must_come_back_is_started_also_where_the_limit_is_used_up(make_unit: Make) -> None:
    unit = make_unit(unit="StartLimitIntervalSec=1h\nStartLimitBurst=2")
    for _ in range(2):
        systemctl("start", unit.file)
        systemctl("stop", unit.file)
    systemctl("start", unit.file, check=False)
    assert (unit.shown("ActiveState"), unit.shown("Result")) == ("failed", "start-limit-hit"), "systemd refuses"
    controller = unit.controller()
    assert controller.may_control() is not None
    controller.start()
    unit.serves()


def test_a_start_asked_for_while_a_stop_is_under_way_comes_after_it(make_unit: Make) -> None:
    """A run that was interrupted in a long stop: what it asks for at its end is kept by systemd."""
    unit = make_unit("ExecStop=/bin/sleep 3\nTimeoutStopSec=60")
    pid = unit.start()
    systemctl("--no-block", "stop", unit.file)
    controller = unit.controller()
    until(lambda: controller.state().stopping)
    assert controller.state().active
    controller.start()
    until(lambda: unit.main_pid() not in (0, pid))
    unit.serves()


def test_a_unit_without_a_limit_is_never_refused(make_unit: Make) -> None:
    unit = make_unit(unit="StartLimitIntervalSec=0\nStartLimitBurst=1")
    unit.start()
    assert unit.controller().may_control() is None
    assert kinds(unit.controller()) == {}
