"""The whole plugin on a real systemd: a user's suite, and the owner's server back whatever ends the run in the middle of a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from systemd_units import RealUnit, systemctl, until

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest


def test_who_answers(sglang_server):
    assert sglang_server.identity().pid


@pytest.mark.ready_within("60 s", start="warm")
@pytest.mark.needs_restart
def test_restart(sglang_server):
    before = sglang_server.identity().pid
    startup = sglang_server.restart()
    assert startup.ready_s > 0.2
    assert startup.pid != before
"""
Make = Callable[..., RealUnit]


def write_suite(folder: Path, unit: RealUnit, server: str = "", more: str = "") -> Path:
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_mine.py").write_text(SUITE)
    (folder / "rig.toml").write_text(
        f'schema = 1\n[rig]\nname = "house"\n[server]\nurl = "{unit.url}"\nsystemd = "{unit.name}"\nmodel = "/models/tiny"\ntp = 1\n'
        f'{server}\n[start]\nwarm = "60 s"\nsilence = "30 s"\n{more}'
    )
    return folder


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """pytest on that suite, its state and its reports in the folder."""
    with (folder / "out.txt").open("w") as out:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:randomly",
                "-p",
                "no:cacheprovider",
                f"--sglang-report-dir={folder / 'reports'}",
                *arguments,
            ],
            cwd=folder,
            env={**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state"), "PYTHONDONTWRITEBYTECODE": "1", **environment},
            stdout=out,
            stderr=out,
            text=True,
        )


def told(folder: Path) -> str:
    return (folder / "out.txt").read_text()


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("reports/*/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def journals(folder: Path) -> list[Path]:
    return list((folder / "state" / "journal").glob("*.jsonl"))


def test_a_user_s_suite_restarts_the_unit_and_leaves_it_running(make_unit: Make, tmp_path: Path) -> None:
    unit = make_unit("ExecStartPre=/bin/true\nTimeoutStartSec=30min", options=f"--load-file {tmp_path / 'load'}")
    before = unit.start()
    folder = write_suite(tmp_path / "mine", unit)
    run = begin(folder, "--sglang-allow-restart")
    assert run.wait(120) == 0, told(folder)
    after = unit.main_pid()
    assert after not in (0, before)
    assert f"rig as left: {unit.name} active (pid {after})" in told(folder)
    checks = {each["id"]: each for each in record(folder)["checks"]}
    assert {name: check["verdict"] for name, check in checks.items()} == {"who-answers": "pass", "restart": "pass"}
    assert checks["restart"]["measured"]["ready_s"]["value"] > 0.2
    assert int(unit.shown("NRestarts")) == 0
    assert journals(folder) == []


def test_by_default_the_unit_is_left_alone(make_unit: Make, tmp_path: Path) -> None:
    unit = make_unit()
    before = unit.start()
    folder = write_suite(tmp_path / "mine", unit)
    assert begin(folder).wait(120) == 0, told(folder)
    assert unit.main_pid() == before
    assert "1 not checked" in told(folder)
    assert "--sglang-allow-restart" in told(folder)


def test_the_acceptance_suite_judges_a_unit_that_flaps(make_unit: Make, tmp_path: Path) -> None:
    """It serves at this moment, so everything but the findings is fine."""
    unit = make_unit("Restart=always\nRestartSec=0.1", "StartLimitIntervalSec=0", options=f"--load-file {tmp_path / 'load'}")
    pid = unit.start()
    for _ in range(3):
        systemctl("kill", "--signal=KILL", unit.file)
        until(lambda pid=pid: unit.main_pid() not in (0, pid))
        pid = unit.main_pid()
    unit.serves()
    folder = write_suite(tmp_path / "mine", unit)
    assert begin(folder, str(ROOT / "acceptance"), f"--rig={folder / 'rig.toml'}").wait(120) == 1, told(folder)
    checks = {each["id"]: each for each in record(folder)["checks"]}
    assert checks["findings"]["verdict"] == "fail"
    assert "restarted it 3 times by itself" in checks["findings"]["message"]
    assert {checks[each]["verdict"] for each in ("server-identity", "ready")} == {"pass"}


STOPPING = "ExecStop=/bin/sleep 11\nTimeoutStopSec=60"
"""A server that takes its time to drain: the run dies while the stop is under way, and systemd goes on with it."""


def cancelled(unit: RealUnit, folder: Path, moment: str, how: str) -> None:
    """As a CI runner cancels a job: SIGINT, SIGTERM 7 s later, SIGKILL 2 s after that; or SIGKILL alone."""
    before = unit.start()
    write_suite(folder, unit)
    run = begin(folder, "--sglang-allow-restart", RUNNER_TRACKING_ID="github_4711", BUILD_ID="7")
    if moment == "stopping":
        until(lambda: unit.shown("ActiveState") == "deactivating", 60)
    else:
        until(lambda: unit.main_pid() not in (0, before), 60)
    if how == "cancelled":
        for number, pause_s in ((signal.SIGINT, 7.0), (signal.SIGTERM, 2.0)):
            run.send_signal(number)
            time.sleep(pause_s)
    run.kill()
    run.wait()
    until(lambda: unit.main_pid() not in (0, before) and unit.shown("ActiveState") == "active", 40)
    unit.serves(40)
    until(lambda: journals(folder) == [], 30)
    until(lambda: of_the_run(folder) == [], 30)
    assert unit.shown("ActiveState") == "active"


def of_the_run(folder: Path) -> list[int]:
    """Processes with the run's state directory in their environment: pytest, its guard."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get("PYTEST_SGLANG_STATE_DIR") == str(folder / "state"):
                found.append(each.pid)
        except psutil.Error:
            continue
    return found


def test_a_cancelled_job_leaves_the_owner_s_server_serving(make_unit: Make, tmp_path: Path) -> None:
    """Side by side: each case waits for signals and drains most of its time."""
    cases = [(moment, how) for moment in ("stopping", "starting") for how in ("cancelled", "killed")]
    options = f"--load-file {tmp_path / 'load'}"
    with ThreadPoolExecutor(len(cases)) as pool:
        running = {}
        for moment, how in cases:
            slow = "--open-after 9.5" if moment == "starting" else ""
            unit = make_unit(STOPPING if moment == "stopping" else "", options=f"{options} {slow}")
            running[moment, how] = pool.submit(cancelled, unit, tmp_path / f"{moment}-{how}", moment, how)
        for case, each in running.items():
            error = each.exception()
            assert error is None, (case, repr(error), told(tmp_path / "-".join(case))[-3000:])
