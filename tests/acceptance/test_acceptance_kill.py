"""kill -9 in the middle of whatever changes something: within 10 s nothing of the run is left and everything is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.unit import Unit

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def owned(folder: Path) -> Iterator[SimulatedRig]:
    """A simulated rig that belongs to an owner, not to the run: warm and serving at 300 W."""
    rig = SimulatedRig.create(folder / "rig", power_w=300)
    try:
        rig.start()
        serves_again(rig)
        yield rig
    finally:
        rig.destroy()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[SimulatedRig]:
    with owned(tmp_path) as rig:
        yield rig


def cache_files(rig: SimulatedRig) -> dict[str, bytes]:
    """Every file of the rig's caches, with its content."""
    places = (rig.config.triton_dir, rig.config.inductor_dir)
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


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


def journals(folder: Path) -> list[Path]:
    return list((folder / "state" / "journal").glob("*.jsonl"))


def journal_kinds(folder: Path) -> list[str]:
    lines = [line for path in journals(folder) for line in path.read_text().splitlines()]
    return [entry.get("kind", "") for entry in map(json.loads, lines) if entry.get("line") == "change"]


def of_the_run(folder: Path, rig: SimulatedRig) -> list[psutil.Process]:
    """Every process that has the run's state directory in its environment: pytest, its children, its guard. The unit's own are the owner's."""
    unit = Unit(rig.config).state()
    mark = str(folder / "state")
    found = []
    for each in psutil.process_iter():
        try:
            if each.pid not in (unit.main_pid, unit.watcher_pid) and each.environ().get("PYTEST_SGLANG_STATE_DIR") == mark:
                found.append(each)
        except psutil.Error:
            continue
    return found


def kill_and_wait(run: subprocess.Popen[str], folder: Path, rig: SimulatedRig) -> None:
    """SIGKILL to pytest alone; 10 s later nothing of the run is alive and nothing is left in the journal."""
    assert len(of_the_run(folder, rig)) >= 2, "pytest and its guard"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 10
    while (left := (of_the_run(folder, rig), journals(folder))) != ([], []):
        assert time.monotonic() < deadline, (left, *[path.read_text() for path in left[1]])
        time.sleep(0.1)


def serves_again(rig: SimulatedRig) -> None:
    """A start takes its time: it has begun when the run's changes are undone, and ends later."""
    deadline = time.monotonic() + 30
    while not rig.serving():
        assert time.monotonic() < deadline, rig.log.read_text()[-2000:]
        time.sleep(0.1)


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


def kill_in_a_sweep(rig: SimulatedRig, folder: Path) -> subprocess.Popen[str]:
    """A sweep of two levels, found while every card is at the second one."""
    run = start_run(rig, folder, "--power=250,390", "-k", "gpu_identity or power_limit")
    wait_for(lambda: requested_limits(rig) == [390] * 6, 60, run, folder)
    return run


def test_killed_in_a_sweep_the_limits_of_before_the_first_level_come_back(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(test, tmp_path / test.__name__) for test in (guard_puts_back, next_start_puts_back)]:
            each.result()


def guard_puts_back(folder: Path) -> None:
    folder.mkdir()
    with owned(folder) as rig:
        kill_and_wait(kill_in_a_sweep(rig, folder), folder, rig)
        assert requested_limits(rig) == [300] * 6


def next_start_puts_back(folder: Path) -> None:
    """The guard dies with its run, as in a power cut of their container."""
    folder.mkdir()
    with owned(folder) as rig:
        run = kill_in_a_sweep(rig, folder)
        for each in of_the_run(folder, rig):
            each.kill()
        run.wait()
        assert requested_limits(rig) == [390] * 6
        assert journals(folder)
        again = start_run(rig, folder, "-k", "gpu_identity")
        assert again.wait(60) == 0, (folder / "out.txt").read_text()[-3000:]
        assert requested_limits(rig) == [300] * 6
        assert "rig as left: limits 300 W x 6" in (folder / "out.txt").read_text()
        assert journals(folder) == []


@pytest.mark.parametrize("moment", ["stopping", "starting"])
def test_killed_in_a_restart_the_owners_server_serves_again(rig: SimulatedRig, tmp_path: Path, moment: str) -> None:
    before = rig.state()["main_pid"]
    moments = {
        "stopping": lambda: "server" in journal_kinds(tmp_path) and rig.state()["active"] == "deactivating",
        "starting": lambda: rig.state()["main_pid"] not in (0, before),
    }
    run = start_run(rig, tmp_path, "--power=300", "-k", "gpu_identity or power_limit or server_identity or ready or warm_restart")
    wait_for(moments[moment], 60, run, tmp_path)
    kill_and_wait(run, tmp_path, rig)
    serves_again(rig)
    assert rig.state()["main_pid"] != before


def test_killed_with_the_caches_aside_they_come_back_byte_for_byte(rig: SimulatedRig, tmp_path: Path) -> None:
    original = cache_files(rig)
    assert original
    run = start_run(rig, tmp_path, "--power=300", "-k", "gpu_identity or power_limit or server_identity or ready or cold_start")
    wait_for(lambda: journal_kinds(tmp_path).count("server") == 2, 90, run, tmp_path)
    time.sleep(1.0)
    kill_and_wait(run, tmp_path, rig)
    serves_again(rig)
    now = cache_files(rig)
    assert {path: now.get(path) for path in original} == original


def test_a_signal_takes_the_clean_way_out(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with ThreadPoolExecutor(len(numbers)) as pool:
        for each in [pool.submit(interrupted, tmp_path / number.name, number) for number in numbers]:
            each.result()


def interrupted(folder: Path, number: signal.Signals) -> None:
    """A run that gets ``number`` in the middle of a measurement, on an owner's rig."""
    folder.mkdir()
    with owned(folder) as rig:
        run = start_run(rig, folder, "--power=250", "-k", "power_limit or server_identity or ready or decode")
        wait_for(lambda: list((folder / "reports").glob("*/rounds.jsonl")), 60, run, folder)
        run.send_signal(number)
        assert run.wait(30) == 2, number.name
        assert requested_limits(rig) == [300] * 6, number.name
        text = (folder / "out.txt").read_text()
        assert "rig as left: limits 300 W x 6" in text
        assert "Traceback" not in text
        record = json.loads(next((folder / "reports").glob("*/run.json")).read_text())
        assert (record["verdict"], record["exit_code"], record["interrupted"]) == ("inconclusive", 2, True)
        assert rig.serving()
        assert (of_the_run(folder, rig), journals(folder)) == ([], [])
