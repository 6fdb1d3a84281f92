"""The stand-in for systemctl on a unit that does not run: forms of output, spellings, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_sglang.simulator import systemctl
from pytest_sglang.simulator.rig import SimulatedRig

Call = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedRig]:
    """A rig whose server was never started."""
    rig = SimulatedRig.create(tmp_path_factory.mktemp("still"), faults=["cache-cold"], faults_at_once=True)
    yield rig
    rig.destroy()


@pytest.fixture
def call(still: SimulatedRig, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the stand-in in this process."""

    def run(*words: str) -> SimpleNamespace:
        code = systemctl.main(["--rig", str(still.directory), *words])
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def properties(call: Call) -> Callable[..., dict[str, str]]:
    def show(wanted: str = "", unit: str = "sglang.service") -> dict[str, str]:
        words = ["-p", wanted] if wanted else []
        return dict(line.split("=", 1) for line in call("show", unit, *words).out.splitlines())

    return show


def test_systemctl_of_a_unit_that_never_ran(still: SimulatedRig, call: Call, properties: Callable[..., dict[str, str]]) -> None:
    found = properties()
    assert (found["LoadState"], found["ActiveState"], found["SubState"], found["MainPID"]) == ("loaded", "inactive", "dead", "0")
    assert found["ExecMainStartTimestampMonotonic"] == "0"
    assert found["ExecMainStartTimestamp"] == ""
    assert f"argv[]={sys.executable} -m pytest_sglang.simulator.server --rig {still.directory} --model-path" in found["ExecStart"]
    assert re.fullmatch(
        r"\{ path=\S+ ; argv\[\]=.* ; ignore_errors=no ; start_time=\[n/a\] ; .* ; status=0/0 \}", found["ExecStart"]
    )
    assert dict(word.split("=", 1) for word in found["Environment"].split())["TRITON_CACHE_DIR"] == str(still.config.triton_dir)
    assert found["StandardError"] == f"append:{still.log}"
    assert (found["TimeoutStartUSec"], found["TimeoutStopUSec"]) == ("30min", "1min 30s")
    assert Path(found["FragmentPath"]).read_text().startswith("[Unit]\n")


def test_systemctl_takes_the_spellings_of_the_real_one(
    still: SimulatedRig, call: Call, properties: Callable[..., dict[str, str]]
) -> None:
    wanted = {"Type": "simple", "User": "root"}
    for words in (
        ["-p", "Type,User"],
        ["--property=Type,User"],
        ["-pType", "-p", "User"],
        ["--property", "Type", "--property=User"],
    ):
        output = call("--no-pager", "--no-ask-password", "show", "sglang", *words).out
        assert dict(line.split("=") for line in output.splitlines()) == wanted
    assert call("show", "sglang.service", "-p", "Type", "--value").out == "simple\n"
    assert call("show", "sglang.service", "-P", "Type").out == "simple\n"
    cat = call("cat", "sglang.service").out
    assert cat.startswith(f"# {still.directory}/sglang.service\n[Unit]\n")
    assert "\nExecStart=" in cat


def test_systemctl_of_an_unknown_unit(still: SimulatedRig, call: Call, properties: Callable[..., dict[str, str]]) -> None:
    assert properties("LoadState,ActiveState", "other.service") == {"LoadState": "not-found", "ActiveState": "inactive"}
    started = call("start", "other.service")
    assert (started.returncode, started.err) == (5, "Failed to start other.service: Unit other.service not found.\n")
    assert call("is-active", "other.service").returncode == 3
    assert call("cat", "other.service").returncode == 1


def test_systemctl_refuses_what_it_does_not_know(
    still: SimulatedRig, call: Call, properties: Callable[..., dict[str, str]]
) -> None:
    unknown = call("daemon-reload", "sglang.service")
    assert (unknown.returncode, unknown.err) == (1, "Unknown command verb 'daemon-reload'.\n")
    alone = subprocess.run(still.systemctl[:3], capture_output=True, text=True, timeout=30, check=False)
    assert alone.returncode == 1
    assert "usage: systemctl --rig DIR" in alone.stderr


def test_stopping_a_unit_that_does_not_run_and_forgetting_no_failure_change_nothing(call: Call, still: SimulatedRig) -> None:
    assert (call("stop", "sglang.service").returncode, call("reset-failed").returncode) == (0, 0)
    assert still.state()["active"] == "inactive"
    assert call("is-active").out == "inactive\n"


def test_a_start_that_cannot_be_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("Job for sglang.service failed because the server's process could not be made: no")

    monkeypatch.setattr("pytest_sglang.simulator.unit.Unit.start", broken)
    started = call("start", "sglang.service")
    assert started.returncode == 1
    assert started.err.startswith("Job for sglang.service failed")


def test_words_with_spaces_are_quoted() -> None:
    assert systemctl._quoted("A=b c") == '"A=b c"'
    assert systemctl._quoted("A=b") == "A=b"
