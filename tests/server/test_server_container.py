from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import control
from pytest_sglang.server.container import Container
from pytest_sglang.server.control import ControlError

TOOL = """
import json, sys
with open(DIR + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
state = json.load(open(DIR + "/state.json"))
if state.get("error"):
    sys.stderr.write(state["error"]); sys.exit(1)
if sys.argv[1] == "inspect":
    print(state["inspect"] if isinstance(state["inspect"], str) else json.dumps([state["inspect"]]))
"""
RUNNING = {
    "State": {
        "Running": True,
        "Status": "running",
        "Pid": 0,
        "StartedAt": "2026-01-02T03:04:05.123456789Z",
        "ExitCode": 0,
        "OOMKilled": False,
    },
    "RestartCount": 0,
    "Path": "python3",
    "Args": ["-m", "sglang.launch_server", "--api-key", "sesame"],
    "Config": {"Env": ["A=1", "HOME=/root"]},
}
Make = Callable[..., Container]


@pytest.fixture
def container(tmp_path: Path) -> Make:
    (tmp_path / "cli.py").write_text(f"DIR = {str(tmp_path)!r}\n{TOOL}")

    def make(inspect: object = RUNNING, error: str = "", log: str | None = None, url: str = "http://127.0.0.1:1") -> Container:
        (tmp_path / "state.json").write_text(json.dumps({"inspect": inspect, "error": error}))
        return Container("sglang", url=url, clock=SystemClock(), log=log, cli=[sys.executable, "-S", str(tmp_path / "cli.py")])

    return make


def test_a_running_container_is_told(container: Make) -> None:
    found = container()
    state = found.state()
    assert (state.active, state.pid, state.restarts, state.detail, state.exit_code) == (True, None, 0, "running", None)
    assert state.started_at == pytest.approx(1767323045.123456)
    assert found.environment() == {"A": "1", "HOME": "/root"}
    assert found.argv()[-2:] == ("--api-key", "<redacted>")
    assert found.may_control() is None
    assert found.findings(None) == []


DOCKER: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "container" / "docker.json").read_text())[0]
PODMAN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "container" / "podman-4.3.1.json").read_text())[0]


def test_the_whole_answer_of_docker_is_read(container: Make) -> None:
    """The form that docker inspect documents, with a port published to another one."""
    found = container(DOCKER, url="http://127.0.0.1:8001")
    state = found.state()
    assert (state.active, state.pid, state.restarts, state.inner_port, state.stopping) == (True, 48231, 0, 30000, None)
    assert state.started_at == pytest.approx(1795797000.123456)
    assert found.argv()[:4] == ("python3", "-m", "sglang.launch_server", "--model-path")
    assert found.environment()["CUDA_VERSION"] == "12.9.1"
    assert container(DOCKER, url="http://127.0.0.1:30000").state().inner_port is None


def test_the_whole_answer_of_podman_is_read(container: Make) -> None:
    """Recorded from Podman 4.3.1, running with --net host."""
    state = container(PODMAN).state()
    assert (state.active, state.pid, state.restarts, state.inner_port, state.detail) == (True, 9239, 0, None, "running")
    assert state.started_at == pytest.approx(1795800617.759929)
    stopping = {**PODMAN, "State": {**PODMAN["State"], "Status": "stopping"}}
    assert container(stopping).state().stopping is True


def test_a_container_between_two_deaths_is_not_active(container: Make) -> None:
    state = {**DOCKER["State"], "Status": "restarting", "Restarting": True, "Pid": 0, "ExitCode": 1}
    found = container({**DOCKER, "State": state, "RestartCount": 4})
    assert (found.state().active, found.state().exit_code) == (False, 1)
    assert [each.kind for each in found.findings(None)] == ["restarted-by-itself"]


@pytest.mark.parametrize(
    ("stamp", "epoch"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T04:04:05.5+01:00", 1767323045.5),
        ("0001-01-01T00:00:00Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_time_stamps_of_docker_and_podman_are_read(container: Make, stamp: str, epoch: float | None) -> None:
    assert container()._started_at(stamp) == epoch


@pytest.mark.parametrize(
    ("code", "exit_code", "oom", "result"), [(137, -9, True, "oom-kill"), (1, 1, False, "exit-code"), (0, 0, False, "success")]
)
def test_how_a_container_ended_is_told(container: Make, code: int, exit_code: int, oom: bool, result: str) -> None:
    state = {
        "Running": False,
        "Status": "exited",
        "Pid": 0,
        "ExitCode": code,
        "OOMKilled": oom,
        "StartedAt": "2026-01-02T03:04:05Z",
    }
    found = container({**RUNNING, "State": state})
    assert (found.state().exit_code, found.state().result) == (exit_code, result)
    assert [each.kind for each in found.findings(None)] == (["oom-kill"] if oom else [])


def test_restarts_by_itself_are_findings(container: Make) -> None:
    assert [each.severity for each in container({**RUNNING, "RestartCount": 1}).findings(None)] == ["warn"]
    assert [each.severity for each in container({**RUNNING, "RestartCount": 9}).findings(None)] == ["fail"]


def test_start_and_stop_go_through_the_cli(container: Make, tmp_path: Path) -> None:
    found = container(log=str(tmp_path / "x.log"))
    found.start()
    found.stop(7.0)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert ["start", "sglang"] in calls
    assert ["stop", "-t", "7", "sglang"] in calls
    assert found.log().describe() == str(tmp_path / "x.log")


def test_a_container_that_cannot_be_seen_says_why(container: Make) -> None:
    found = container(error="permission denied while trying to connect to the Docker daemon socket")
    assert found.state().result == "unreadable"
    assert "permission denied" in (found.may_control() or "")
    assert (found.environment(), found.argv()) == ({}, ())
    with pytest.raises(ControlError, match="permission denied"):
        found.start()
    with pytest.raises(ControlError, match="permission denied"):
        found.stop(1.0)
    assert container("not json").state().result == "unreadable"
    assert container("[[]]").state().result == "unreadable"


def test_its_description_makes_the_same_controller(container: Make) -> None:
    found = container()
    assert control.from_description(found.description()).description() == found.description()
    assert "logs sglang" in found.log().describe()
