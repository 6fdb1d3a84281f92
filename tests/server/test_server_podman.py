"""A real Podman container without an image: this machine's own file system below an overlay. Skipped where none can be run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server import identity
from pytest_sglang.server.container import Container
from pytest_sglang.server.http import ControlPlane

FAKE = Path(__file__).parent / "fake_sglang.py"
CLI = ["podman", "--cgroup-manager=cgroupfs", "--runtime=runc"]
Make = Callable[..., Container]


def podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def engine() -> None:
    """Whether a container can be made and run here."""
    missing = [each for each in ("podman", "runc") if shutil.which(each) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    tried = podman("run", "--rm", *HOST, "--rootfs", "/:O", "true")
    if tried.returncode != 0:
        pytest.skip(f"podman runs no container here: {tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else '?'}")


HOST = ["--net=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]


@pytest.fixture
def container(engine: None, port: int) -> Iterator[Make]:
    made: list[str] = []

    def make(*options: str) -> Container:
        name = f"pytest-sglang-{uuid.uuid4().hex[:8]}"
        server = [sys.executable, "-S", str(FAKE), "--port", str(port), *options]
        created = podman("create", "--name", name, *HOST, "--env", "GREETING=hello", "--rootfs", "/:O", *server)
        assert created.returncode == 0, created.stderr
        made.append(name)
        return Container(name, url=f"http://127.0.0.1:{port}", clock=SystemClock(), cli=CLI)

    yield make
    for each in made:
        podman("rm", "--force", "--time", "0", each)


def serves(port: int) -> None:
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        deadline = time.monotonic() + 30
        while plane.health() != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_container_is_started_known_and_stopped(container: Make, port: int) -> None:
    found = container("--exit-on-term", "--child")
    assert found.may_control() is None
    assert (found.state().active, found.state().pid, found.state().started_at) == (False, None, None)
    begun = time.time()
    found.start()
    serves(port)
    state = found.state()
    assert (state.active, state.restarts, state.detail, state.stopping) == (True, 0, "running", None)
    assert begun - 1 < (state.started_at or 0) < time.time() + 1
    process = psutil.Process(state.pid)
    tree = [process, *process.children()]
    assert len(tree) == 2
    assert str(FAKE) in found.argv()
    assert found.environment()["GREETING"] == "hello"
    log = found.log()
    assert "server_args" in log.read()
    position = log.end()
    with ControlPlane(found._url) as plane:
        promise = ServerPromise(url=found._url, container=found.subject)
        told = identity.identify(found._url, promise, state, plane, SystemClock(), begun)
        assert (told.findings, told.unproved, told.pid) == ((), "", state.pid)
        plane.health()
    assert log.tail_from(position)[0].strip().endswith("200 OK")
    found.stop(5.0)
    assert not any(each.is_running() for each in tree)
    assert (found.state().active, found.state().result, found.state().exit_code) == (False, "success", 0)
    found.start()
    serves(port)
    again = found.state()
    assert again.pid != state.pid
    assert (again.started_at or 0) > (state.started_at or 0)


def test_a_container_that_is_deaf_to_sigterm_is_killed_and_says_so(container: Make, port: int) -> None:
    found = container("--ignore-term")
    found.start()
    serves(port)
    found.stop(1.0)
    state = found.state()
    assert (state.active, state.result, state.exit_code) == (False, "timeout", -9)
