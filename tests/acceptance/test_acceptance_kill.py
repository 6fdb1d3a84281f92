"""kill -9 in the middle of whatever changes something: within 10 s nothing of the run is left and everything is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_sglang.simulator.rig import SimulatedRig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[SimulatedRig]:
    """A simulated rig that belongs to an owner, not to the run: warm and serving at 300 W."""
    rig = SimulatedRig.create(tmp_path / "rig", power_w=300)
    rig.start()
    deadline = time.monotonic() + 60
    while not rig.serving():
        assert time.monotonic() < deadline, rig.log.read_text()[-2000:]
        time.sleep(0.05)
    yield rig
    rig.destroy()


def cache_files(rig: SimulatedRig) -> dict[str, bytes]:
    """Every file of the rig's caches, with its content."""
    found = {}
    for name in rig.cache_paths():
        for path in Path(name).rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def start_run(rig: SimulatedRig, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "acceptance"),
        "--rig=simulated",
        f"--sglang-simulated-dir={rig.directory}",
    ]
    with (folder / "out.txt").open("w") as out:
        return subprocess.Popen(
            [*command, f"--sglang-report-dir={folder / 'reports'}", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=out,
            text=True,
        )


def wait_for(what: Callable[[], object], seconds: float, run: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert run.poll() is None, (folder / "out.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "out.txt").read_text()[-3000:]
        time.sleep(0.02)


def journal_kinds(folder: Path) -> list[str]:
    lines = [line for path in (folder / "state" / "journal").glob("*.jsonl") for line in path.read_text().splitlines()]
    return [entry.get("kind", "") for entry in map(json.loads, lines) if entry.get("line") == "change"]


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def kill_and_wait(run: subprocess.Popen[str], folder: Path, rig: SimulatedRig) -> None:
    """SIGKILL to pytest alone, then at most 10 s for the guard."""
    server = rig.state()
    children = [each for each in descendants(run.pid) if each.pid != server.pid]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE], alive
    deadline = time.monotonic() + 10
    while any((folder / "state" / "journal").glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list((folder / "state" / "journal").glob("*.jsonl")), "the journal is not empty"


def requested_limits(rig: SimulatedRig) -> list[int]:
    nvml = rig.nvml()
    nvml.nvmlInit()
    count = nvml.nvmlDeviceGetCount()
    return [nvml.nvmlDeviceGetPowerManagementLimit(nvml.nvmlDeviceGetHandleByIndex(index)) // 1000 for index in range(count)]


def test_killed_in_a_measurement_the_power_level_comes_back(rig: SimulatedRig, tmp_path: Path) -> None:
    run = start_run(rig, tmp_path, "--power=250", "-k", "power_limit or server_identity or ready or decode")
    wait_for(lambda: list((tmp_path / "reports").glob("*/rounds.jsonl")), 60, run, tmp_path)
    assert requested_limits(rig) == [250] * 6
    kill_and_wait(run, tmp_path, rig)
    assert requested_limits(rig) == [300] * 6
    assert rig.serving()
    record = json.loads(next((tmp_path / "reports").glob("*/run.json")).read_text())
    assert record["finished"] is None
    assert record["verdict"] == "inconclusive"
    assert len([check for check in record["checks"] if check["verdict"] == "pass"]) >= 3


def test_killed_in_a_restart_the_owners_server_serves_again(rig: SimulatedRig, tmp_path: Path) -> None:
    before = rig.state().pid
    run = start_run(rig, tmp_path, "--power=300", "-k", "gpu_identity or power_limit or server_identity or ready or warm_restart")
    wait_for(lambda: "server" in journal_kinds(tmp_path), 60, run, tmp_path)
    kill_and_wait(run, tmp_path, rig)
    deadline = time.monotonic() + 30
    while not rig.serving() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert rig.serving()
    assert rig.state().pid != before


def test_killed_with_the_caches_aside_they_come_back_byte_for_byte(rig: SimulatedRig, tmp_path: Path) -> None:
    original = cache_files(rig)
    assert original
    run = start_run(rig, tmp_path, "--power=300", "-k", "gpu_identity or power_limit or server_identity or ready or cold_start")
    wait_for(lambda: journal_kinds(tmp_path).count("server") == 2, 90, run, tmp_path)
    time.sleep(1.0)
    kill_and_wait(run, tmp_path, rig)
    deadline = time.monotonic() + 30
    while not rig.serving() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert rig.serving()
    now = cache_files(rig)
    assert {path: now.get(path) for path in original} == original


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_clean_way_out(rig: SimulatedRig, tmp_path: Path, number: signal.Signals) -> None:
    run = start_run(rig, tmp_path, "--power=250", "-k", "power_limit or server_identity or ready or decode")
    wait_for(lambda: list((tmp_path / "reports").glob("*/rounds.jsonl")), 60, run, tmp_path)
    run.send_signal(number)
    assert run.wait(30) == 2
    assert requested_limits(rig) == [300] * 6
    text = (tmp_path / "out.txt").read_text()
    assert "rig as left: limits 300 W x 6" in text
    record = json.loads(next((tmp_path / "reports").glob("*/run.json")).read_text())
    assert (record["verdict"], record["exit_code"], record["interrupted"]) == ("inconclusive", 2, True)
