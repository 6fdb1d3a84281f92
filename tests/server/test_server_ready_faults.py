"""Every fault of the simulated server's start, as the wait for readiness tells it; what only looks like a fault is none.

The starts wait for one another's clocks more than they work: they are made side by side.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_sglang.cache import locate, snapshot
from pytest_sglang.cache.diff import added
from pytest_sglang.record.values import Startup
from pytest_sglang.server import earlier, ready
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.server.ready import StartFailed
from pytest_sglang.server.systemd import Systemd
from pytest_sglang.simulator import crashes
from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.rig import SimulatedRig

AT_ONCE = 4
FAILING = {
    "never-ready": ("hang", "capture_decode", "no sign of progress"),
    "stopped": ("hang", "capture_decode", "stopped by somebody (SIGSTOP): pid"),
    "hung-engine": ("hang", "warmup", "the port is open, but /health answers 503"),
    "dies-loading": ("died", "weights", "torch.OutOfMemoryError: CUDA out of memory"),
    "misleading-crash": ("died", "capture_decode", crashes.CAUSE),
    "nan-tokens": ("not ready", None, "finish reason stop (NaN happened)"),
    "impostor": ("not ready", None, "which the start did not bring"),
    "unit-flaps": ("died", None, "restarted it by itself"),
}
HARMLESS = ("log-silent,cache-cold", "log-rotates", "port-opens-early", "compiles-after-ready")
RANDOM = tuple(f"random-timing,cache-cold,{number}" if not number else f"random-timing,{number}" for number in range(5))


class Ran(NamedTuple):
    """A start: how it ended, its log, and the old server's pid (fault impostor)."""

    startup: Startup | None
    failed: StartFailed | None
    log: str
    old: int | None

    @property
    def ready(self) -> Startup:
        assert self.startup is not None, self.failed
        return self.startup

    @property
    def not_ready(self) -> StartFailed:
        assert self.failed is not None, self.startup
        return self.failed


def _wait(rig: SimulatedRig) -> Startup:
    """Start the rig's unit and wait."""
    unit = Systemd(rig.unit, url=rig.url, log=str(rig.log), clock=rig.clock, systemctl=rig.systemctl)
    launched, places = rig.clock.time(), _places(rig)
    unit.start()
    with ControlPlane(rig.url) as plane:
        return ready.wait_ready(
            controller=unit,
            plane=plane,
            log=unit.log(),
            clock=rig.clock,
            launched_at=launched,
            budget_s=1500.0,
            silence_s=300.0,
            activity=lambda: snapshot.newest(places),
            watched="no cache file, no CPU time",
        )


def _places(rig: SimulatedRig) -> tuple[locate.CachePlace, ...]:
    environ = {"TRITON_CACHE_DIR": str(rig.config.triton_dir), "TORCHINDUCTOR_CACHE_DIR": str(rig.config.inductor_dir)}
    return locate.locate(version="0.5.11", environ=environ, home=rig.config.home, tmpdir=rig.config.home, user="root")


def _run(folder: Path, job: str) -> Ran:
    faults = [each for each in job.split(",") if not each.isdigit()]
    rig = SimulatedRig.create(folder, faults=faults, faults_at_once=True, speed=400.0)
    startup, failed = None, None
    try:
        startup = _wait(rig)
    except StartFailed as error:
        failed = error
    finally:
        old = folder / "old.json"
        pid = json.loads(old.read_text())["pid"] if old.exists() else None
        log = rig.log.read_text(encoding="utf-8")
        rig.destroy()
    return Ran(startup, failed, log.split("server_args=")[-1], pid)


class Runs:
    """Starts under way, by what is wrong with them; one that nobody foresaw is made when it is asked for."""

    def __init__(self, pool: ThreadPoolExecutor, factory: pytest.TempPathFactory) -> None:
        self._pool, self._factory = pool, factory
        self._jobs: dict[str, Future[Ran]] = {}

    def begin(self, job: str) -> Future[Ran]:
        if job not in self._jobs:
            self._jobs[job] = self._pool.submit(_run, self._factory.mktemp("rig") / "rig", job)
        return self._jobs[job]

    def __getitem__(self, job: str) -> Ran:
        return self.begin(job).result()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = Runs(pool, tmp_path_factory)
        for item in request.session.items:
            if item.path == request.path and hasattr(item, "callspec"):
                found.begin(item.callspec.params["job"])
        yield found


@pytest.mark.parametrize("job", FAILING)
def test_a_start_that_fails_is_told_with_kind_phase_and_cause(job: str, runs: Runs) -> None:
    kind, phase, cause = FAILING[job]
    failed = runs[job].not_ready
    assert (failed.kind, cause in failed.cause) == (kind, True), failed
    assert phase in (None, failed.phase)
    assert failed.startup.ready_s is None


def test_the_first_traceback_is_the_cause_and_the_last_one_is_not(runs: Runs) -> None:
    ran = runs["misleading-crash"]
    assert ran.log.count("Traceback") == 3
    assert "EOFError" in ran.log
    assert "EOFError" not in ran.not_ready.traceback
    assert ran.not_ready.traceback.rstrip().endswith(crashes.CAUSE)
    assert ran.not_ready.exit_code == -9


def test_an_old_server_on_the_port_is_named_with_pid_age_and_command_line(runs: Runs) -> None:
    ran = runs["impostor"]
    assert f"pid {ran.old} (running for" in ran.not_ready.cause
    assert "pytest_sglang.simulator.server" in ran.not_ready.cause
    assert [each.kind for each in ran.not_ready.startup.findings if each.severity == "fail"] == ["impostor"]


def test_a_unit_that_flaps_is_told_with_the_first_death(runs: Runs) -> None:
    assert "The memory capacity is unbalanced" in runs["unit-flaps"].not_ready.cause


def test_a_port_that_opens_long_before_readiness_is_not_taken_for_it(runs: Runs) -> None:
    startup = runs["port-opens-early"].ready
    warm_up = next(each for each in startup.phases if each.id == "warmup")
    assert startup.ready_s is not None
    assert startup.port_open_s is not None
    assert warm_up.end_s is not None
    assert 20 < warm_up.end_s - warm_up.begin_s < 40
    assert startup.ready_s - startup.port_open_s > 20


@pytest.mark.parametrize("job", HARMLESS)
def test_what_only_looks_like_a_failure_is_none(job: str, runs: Runs) -> None:
    startup = runs[job].ready
    assert startup.ready_s is not None
    assert startup.ready_s > (1000 if "cache-cold" in job else 60)
    assert {"weights", "capture_decode", "warmup", "ready"} <= {each.id for each in startup.phases}
    assert startup.capture_s is not None
    assert [each for each in startup.findings if each.severity == "fail"] == []


def test_the_log_was_rotated_in_that_start(runs: Runs) -> None:
    log = runs["log-rotates"].log
    assert "Load weight" not in log
    assert "Uvicorn running" in log


def test_the_log_was_silent_in_that_start(runs: Runs) -> None:
    log = runs["log-silent,cache-cold"].log
    assert "AUTOTUNE" not in log
    assert "Capturing batches" not in log


def test_the_very_first_request_is_timed(runs: Runs) -> None:
    startup = runs["compiles-after-ready"].ready
    assert startup.request_tokens == 16
    assert startup.first_request_s is not None
    assert startup.first_request_s > 3


@pytest.mark.parametrize("job", RANDOM)
def test_no_false_alarm_with_random_timing(job: str, runs: Runs) -> None:
    startup = runs[job].ready
    assert startup.ready_s is not None
    assert 40 < startup.ready_s < (1500 if "cache-cold" in job else 90)
    total = sum((each.end_s or 0) - each.begin_s for each in startup.phases if each.id not in ("ready", "first_token"))
    assert total == pytest.approx(startup.ready_s, abs=2)


def test_a_start_interrupted_while_it_compiled_is_known_when_it_is_resumed(tmp_path: Path) -> None:
    """A cold start killed in the middle of graph capture, and the start after it."""
    rig = SimulatedRig.create(tmp_path / "rig", speed=200.0)
    try:
        caches = Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)
        caches.empty()
        whole = len(caches.missing())
        rig.start()
        deadline = time.monotonic() + 60
        while len(caches.missing()) > 0.7 * whole:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(rig.state()["main_pid"], signal.SIGKILL)
        while rig.state()["main_pid"]:
            time.sleep(0.02)
        left, before = len(caches.missing()), snapshot.take(_places(rig))
        assert 0 < left < whole
        startup = _wait(rig)
        found = added(before, snapshot.take(_places(rig)))
        assert found.before_entries > 0
        assert found.new_kernels
        assert startup.ready_s is not None
        assert 90 < startup.ready_s < 1300
        assert earlier.interrupted(rig.log.read_text(encoding="utf-8"), startup.launched_at) == "capture_decode"
        # the start after that is a whole one
        rig.stop()
        again = _wait(rig)
        assert earlier.interrupted(rig.log.read_text(encoding="utf-8"), again.launched_at) is None
    finally:
        rig.destroy()
