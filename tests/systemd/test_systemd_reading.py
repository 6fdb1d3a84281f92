"""What the controller reads of a real systemd: processes, time stamps, environments, logs, kinds of units."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from systemd_units import RealUnit, systemctl, until, user_manager

from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server.control import ControlError
from pytest_sglang.server.log import split
from pytest_sglang.server.phases import timeline

Make = Callable[..., RealUnit]
START = StartPromise(cold_s=1500.0, warm_s=90.0)


def test_state_environment_and_arguments_are_the_running_process_s(make_unit: Make, tmp_path: Path) -> None:
    file = tmp_path / "environment"
    file.write_text("# a comment\nFROM_FILE='two words'\nBOTH=file\n")
    unit = make_unit(
        f'Environment=FROM_UNIT=1 BOTH=unit "SPACED=a b"\nEnvironmentFile={file}\nEnvironmentFile=-/nonexistent\n'
        "ExecStartPre=/bin/true\nTimeoutStartSec=1min 40s"
    )
    controller = unit.controller()
    before = controller.state()
    assert (before.active, before.pid, before.started_at) == (False, None, None)
    told = controller.environment()
    assert (told["FROM_FILE"], told["FROM_UNIT"], told["BOTH"], told["SPACED"], told["HOME"]) == (
        "two words",
        "1",
        "file",
        "a b",
        str(tmp_path),
    )
    asked = time.time()
    controller.start()
    until(lambda: controller.state().pid)
    state = controller.state()
    assert state.pid == unit.main_pid()
    process = psutil.Process(state.pid)
    assert "unit_server.py" in " ".join(process.cmdline())
    assert state.started_at == pytest.approx(process.create_time(), abs=1.5)
    assert asked - 1 < (state.started_at or 0) < time.time() + 1
    assert (state.active, state.restarts, state.stopping, state.exit_code) == (True, 0, False, None)
    assert list(controller.argv()) == process.cmdline()
    running = controller.environment()
    assert {name: running[name] for name in told} == told
    assert controller.show()["TimeoutStartUSec"] == "1min 40s"
    # the time-out covers ExecStartPre, and not the server itself
    assert [(each.kind, each.severity) for each in controller.findings(START)] == [("unit-timeout", "warn")]
    unit.serves()
    controller.stop(5.0)
    ended = controller.state()
    assert (ended.active, ended.pid, ended.result) == (False, None, "success")
    assert not process.is_running()


def test_the_journal_is_read_whole_and_followed(make_unit: Make, tmp_path: Path) -> None:
    """tqdm's progress bars live by carriage returns: journald calls such a line blob data and shows it only when asked."""
    log = tmp_path / "lines.sh"
    log.write_text(
        "printf '[2026-11-27 10:00:00] server_args=ServerArgs(a=1)\\n'\n"
        "printf 'Capturing batches (bs=4):  25%%|##5  | 1/4\\rCapturing batches (bs=2): 100%%|#####| 4/4\\n' >&2\n"
        "printf 'an umlaut \\303\\274, a broken byte \\377, a bell \\007\\n'\n"
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo later; exec sleep 60\n"
    )
    unit = make_unit(exec_start=f"/bin/sh {log}")
    systemctl("start", unit.file)
    source = unit.controller().log()
    assert source.describe() == f"journal of {unit.file}"
    until(lambda: "umlaut" in source.read())
    text = source.read()
    assert "Capturing batches (bs=4):  25%|##5  | 1/4\rCapturing batches (bs=2): 100%|#####| 4/4\n" in text
    assert "an umlaut ü, a broken byte \ufffd, a bell \x07\n" in text
    assert "Started" not in text, "what systemd says of the unit is no line of the server"
    position = source.end()
    (tmp_path / "go").touch()
    until(lambda: "later" in source.tail_from(position)[0])
    assert source.tail_from(position)[0] == "later\n"


def test_a_start_in_the_journal_has_its_phases(make_unit: Make) -> None:
    unit = make_unit()
    unit.start()
    found = timeline(split(unit.controller().log().read()))
    assert {"arguments", "weights", "capture_decode", "port_open", "ready"} <= {each.id for each in found.phases}


@pytest.mark.parametrize("how", ["append", "truncate"])
def test_a_unit_that_writes_a_file_has_its_log_there(make_unit: Make, tmp_path: Path, how: str) -> None:
    file = tmp_path / "sglang.log"
    unit = make_unit(f"StandardOutput={how}:{file}\nStandardError=inherit")
    unit.start()
    source = unit.controller().log()
    assert source.describe() == str(file)
    assert "fired up" in source.read()


def test_a_forking_unit_is_known_by_the_process_that_stays(make_unit: Make) -> None:
    unit = make_unit("Type=forking\nTimeoutStartSec=20", options="--fork --open-after 0.1")
    unit.start()
    controller = unit.controller()
    state = controller.state()
    assert state.active
    assert state.pid is not None
    assert any(each.laddr.port == unit.port for each in psutil.Process(state.pid).net_connections())
    assert [each.kind for each in controller.findings(START)] == ["unit-timeout"]
    controller.stop(5.0)
    assert not psutil.pid_exists(state.pid)


def test_a_oneshot_unit_whose_server_stays_in_its_cgroup_is_running(make_unit: Make) -> None:
    """systemd knows no main process of it once ExecStart has ended; the processes of its cgroup are the server."""
    unit = make_unit("Type=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=20", options="--fork --open-after 0.1")
    unit.start()
    assert unit.shown("MainPID") == "0"
    controller = unit.controller()
    state = controller.state()
    assert state.active
    assert state.pid is not None
    assert "unit_server.py" in " ".join(psutil.Process(state.pid).cmdline())
    assert [each.kind for each in controller.findings(START)] == ["unit-timeout"]
    controller.stop(5.0)
    assert not psutil.pid_exists(state.pid)
    assert not controller.state().active
    controller.start()
    unit.serves()
    assert controller.state().pid not in (None, state.pid)


def test_what_a_stop_leaves_of_the_unit_is_named(make_unit: Make) -> None:
    """KillMode=process ends the main process alone: its schedulers stay, and with them the GPU memory."""
    unit = make_unit("KillMode=process", options="--child")
    pid = unit.start()
    (child,) = psutil.Process(pid).children()
    controller = unit.controller()
    try:
        with pytest.raises(ControlError, match=rf"still alive after \d+ s: pid {child.pid} "):
            controller.stop(0.5)
    finally:
        child.kill()


def test_an_orphan_of_the_unit_is_found_in_its_cgroup(make_unit: Make) -> None:
    """Re-parented before the stop, it is nobody's descendant any more; SIGTERM does not end it, and SendSIGKILL=no spares it."""
    unit = make_unit(
        "Type=forking\nSendSIGKILL=no\nTimeoutStopSec=1\nTimeoutStartSec=20", options="--fork --orphan --open-after 0.1"
    )
    pid = unit.start()
    assert pid
    os.kill(pid, signal.SIGSTOP)  # it cannot end its tree itself
    (orphan,) = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    controller = unit.controller()
    until(lambda: not psutil.pid_exists(pid))
    try:
        with pytest.raises(ControlError, match=f"pid {orphan.pid} "):
            controller.stop(0.5)
    finally:
        orphan.kill()


def test_a_user_s_unit(make_unit: Make) -> None:
    user_manager()
    unit = make_unit(user=True)
    controller = unit.controller()
    assert controller.may_control() is None
    controller.start()
    unit.serves()
    state = controller.state()
    assert (state.active, state.pid, state.restarts) == (True, unit.main_pid(), 0)
    source = controller.log()
    until(lambda: "fired up" in source.read())
    assert "Started" not in source.read()
    controller.stop(5.0)
    assert not controller.state().active
    assert os.environ["XDG_RUNTIME_DIR"]
