from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise, StartPromise
from pytest_sglang.server import control, systemd
from pytest_sglang.server.control import ControlError
from pytest_sglang.server.properties import StartLimit, span_s
from pytest_sglang.server.systemd import Systemd

# a stand-in for systemctl on one unit: properties in a JSON file, start and stop of a real process
TOOL = """
import json, os, signal, subprocess, sys, time
state = json.load(open(STATE))
words = [word for word in sys.argv[1:] if not word.startswith("-")]
with open(STATE + ".calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
if state.get("broken"):
    sys.stderr.write("Failed to connect to bus"); sys.exit(1)
if words[0] == "show":
    print("\\n".join(f"{key}={value}" for key, value in state["show"].items()))
elif words[0] == "cat":
    print(state["file"])
elif words[0] == "start":
    if state.get("refuse"):
        sys.stderr.write("Access denied"); sys.exit(4)
    child = subprocess.Popen([sys.executable, "-S", "-c", state["code"]], start_new_session=True)
    state["show"].update(MainPID=str(child.pid), ActiveState="active", SubState="running",
                         ExecMainStartTimestampMonotonic=str(int(time.monotonic() * 1e6)))
    json.dump(state, open(STATE, "w"))
elif words[0] == "stop":
    pid = int(state["show"].get("MainPID", 0))
    if pid and not state.get("lazy"):
        os.kill(pid, signal.SIGKILL)
    state["show"].update(MainPID="0", ActiveState="inactive", SubState="dead", ExecMainCode="2", ExecMainStatus="9")
    json.dump(state, open(STATE, "w"))
"""
SHOW = {
    "LoadState": "loaded",
    "ActiveState": "inactive",
    "SubState": "dead",
    "Result": "success",
    "MainPID": "0",
    "NRestarts": "0",
    "ExecMainStartTimestampMonotonic": "0",
    "Type": "simple",
    "TimeoutStartUSec": "1min 30s",
    "TimeoutStopUSec": "2s",
    "StartLimitBurst": "5",
    "StartLimitIntervalUSec": "10s",
    "User": "root",
}
Make = Callable[..., Systemd]


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Make]:
    path = tmp_path / "state.json"

    def make(
        *, log: str | None = None, broken: bool = False, refuse: bool = False, lazy: bool = False, file: str = "", **show: str
    ) -> Systemd:
        code = "import time; time.sleep(60)"
        state = {"show": {**SHOW, **show}, "code": code, "broken": broken, "file": file, "refuse": refuse, "lazy": lazy}
        path.write_text(json.dumps(state))
        script = tmp_path / "systemctl.py"
        script.write_text(f"STATE = {str(path)!r}\n{TOOL}")
        return Systemd(
            "sglang.service",
            url="http://127.0.0.1:1",
            clock=SystemClock(),
            log=log,
            systemctl=[sys.executable, "-S", str(script), "--no-pager"],
        )

    yield make
    if path.exists():
        pid = int(json.loads(path.read_text())["show"]["MainPID"])
        if pid:
            os.kill(pid, 9)


def _calls(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "state.json.calls").read_text().splitlines()]


def test_a_unit_is_started_stopped_and_its_process_told(unit: Make, tmp_path: Path) -> None:
    controller = unit()
    assert controller.may_control() is None
    assert not controller.state().active
    before = time.time()
    controller.start()
    state = controller.state()
    assert state.active
    assert state.pid
    assert state.started_at == pytest.approx(before, abs=5)
    assert state.restarts == 0
    assert "time.sleep(60)" in " ".join(controller.argv())
    controller.stop(2.0)
    ended = controller.state()
    assert (ended.active, ended.pid, ended.exit_code, ended.detail) == (False, None, -9, "inactive (dead)")
    verbs = [next(word for word in call if not word.startswith("-")) for call in _calls(tmp_path)]
    assert [verb for verb in verbs if verb != "show"] == ["start", "stop"]


def test_what_survives_a_stop_is_named(unit: Make) -> None:
    controller = unit(lazy=True)
    controller.start()
    pid = controller.state().pid
    assert pid is not None
    standing = control.Standing(pid, 1)
    with pytest.raises(ControlError, match=f"sglang.service was stopped, but still alive after 0 s: pid {pid}"):
        standing.prove_gone(controller.subject, 0.1)
    os.kill(pid, 9)


def test_a_refused_start_says_why(unit: Make) -> None:
    with pytest.raises(ControlError, match="Access denied"):
        unit(refuse=True).start()


def test_systemctl_that_does_not_answer_is_a_value_with_a_reason(unit: Make) -> None:
    controller = unit(broken=True)
    state = controller.state()
    assert (state.active, state.result) == (False, "unreadable")
    assert "Failed to connect to bus" in state.detail
    assert "Failed to connect to bus" in (controller.may_control() or "")
    assert [each.kind for each in controller.findings(None)] == ["unit-unreadable"]
    missing = Systemd("x.service", url="http://127.0.0.1:1", clock=SystemClock(), systemctl=["no-such-systemctl"])
    assert "not installed" in missing.state().detail


def test_a_unit_that_does_not_exist_is_a_finding(unit: Make) -> None:
    controller = unit(LoadState="not-found")
    assert "not-found" in (controller.may_control() or "")
    assert [(each.kind, each.severity) for each in controller.findings(None)] == [("unit-missing", "fail")]
    assert not controller.state().active


@pytest.mark.parametrize(
    ("show", "kinds"),
    [
        ({"Type": "notify", "TimeoutStartUSec": "5s"}, [("unit-timeout", "fail")]),
        ({"Type": "notify", "TimeoutStartUSec": "30min"}, []),
        ({"Type": "notify", "TimeoutStartUSec": "infinity"}, []),
        ({"Type": "oneshot", "TimeoutStartUSec": "1min 30s"}, [("unit-timeout", "fail")]),
        ({"Type": "simple", "TimeoutStartUSec": "5s"}, []),
        ({"Type": "simple", "TimeoutStartUSec": "5s", "ExecStartPost": "{ path=/bin/x ; }"}, [("unit-timeout", "warn")]),
        ({"NRestarts": "1"}, [("restarted-by-itself", "warn")]),
        ({"NRestarts": "4"}, [("restarted-by-itself", "fail")]),
        ({"Result": "oom-kill"}, [("oom-kill", "fail")]),
        ({"Result": "start-limit-hit"}, [("start-limit-hit", "fail")]),
        ({"PrivateTmp": "yes"}, [("private-tmp", "warn")]),
        ({"PrivateTmp": "yes", "Environment": "TORCHINDUCTOR_CACHE_DIR=/var/cache/i"}, []),
        ({}, []),
    ],
)
def test_what_is_off_about_a_unit_is_a_finding(unit: Make, show: dict[str, str], kinds: list[tuple[str, str]]) -> None:
    found = unit(**show).findings(StartPromise(cold_s=1500.0, warm_s=90.0))
    assert [(each.kind, each.severity) for each in found] == kinds
    assert all(each.remedy or each.kind in ("oom-kill", "start-limit-hit") for each in found)


def test_without_a_promised_cold_start_no_time_out_is_too_short(unit: Make) -> None:
    assert unit(Type="notify", TimeoutStartUSec="5s").findings(None) == []


def test_a_unit_that_waits_to_be_restarted_is_not_active(unit: Make) -> None:
    assert not unit(ActiveState="activating", SubState="auto-restart").state().active
    assert unit(ActiveState="activating", SubState="start").state().active
    assert not unit(ActiveState="active", SubState="exited").state().active


def test_a_start_that_waits_for_readiness_is_not_waited_for(unit: Make, tmp_path: Path) -> None:
    controller = unit(Type="notify")
    controller.start()
    assert ["--no-block" in call for call in _calls(tmp_path) if "start" in call] == [True]
    controller.stop(1.0)


def test_starts_that_systemd_would_refuse_are_refused_before(unit: Make) -> None:
    controller = unit(StartLimitBurst="3", StartLimitIntervalUSec="1h", WantedBy="multi-user.target")
    for _ in range(2):
        assert controller.may_control() is None
        controller.start()
        controller.stop(1.0)
    assert "2 starts in 60 min 00 s, StartLimitBurst=3" in (controller.may_control() or "")
    assert [each.kind for each in controller.findings(None)] == ["start-limit"]


def test_a_server_that_must_come_back_is_not_kept_down_by_the_start_limit(unit: Make, tmp_path: Path) -> None:
    controller = unit(StartLimitBurst="1", StartLimitIntervalUSec="infinity", RequiredBy="llm.target")
    for _ in range(2):
        controller.start()
        controller.stop(1.0)
    verbs = [next(word for word in call if not word.startswith("-")) for call in _calls(tmp_path)]
    assert [verb for verb in verbs if verb != "show"] == ["start", "stop", "reset-failed", "start", "stop"]
    assert "1 start since boot" in StartLimit(1, float("inf"), 1).describe()


def test_a_unit_that_nothing_refers_to_has_no_start_limit(unit: Make) -> None:
    """systemd forgets it, and what it counted, when it stops."""
    controller = unit(StartLimitBurst="1", StartLimitIntervalUSec="1h")
    for _ in range(2):
        controller.start()
        controller.stop(1.0)
    assert controller.may_control() is None
    assert controller.findings(None) == []


def test_environment_comes_from_the_unit_and_its_files(unit: Make, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nA=from file\nB='quoted value'\n")
    controller = unit(Environment='A=1 "C=two words"', EnvironmentFiles=f"{file} (ignore_errors=no)")
    found = controller.environment()
    assert (found["A"], found["B"], found["C"], found["HOME"]) == ("from file", "quoted value", "two words", "/root")


def test_the_running_process_environment_wins(unit: Make) -> None:
    controller = unit(Environment="A=1")
    controller.start()
    assert controller.environment()["PATH"] == os.environ["PATH"]
    controller.stop(1.0)


@pytest.mark.parametrize(
    ("show", "describes"),
    [
        ({"StandardOutput": "append:/var/log/o.log", "StandardError": "append:/var/log/e.log"}, "/var/log/e.log"),
        ({"StandardOutput": "append:/var/log/o.log", "StandardError": "inherit"}, "/var/log/o.log"),
        ({"StandardOutput": "journal", "StandardError": "inherit"}, "journal of sglang.service"),
        ({}, "journal of sglang.service"),
    ],
)
def test_the_log_is_where_the_unit_writes_it(unit: Make, show: dict[str, str], describes: str) -> None:
    assert unit(**show).log().describe() == describes


def test_the_path_of_the_log_comes_from_the_units_file_where_show_gives_the_word_alone(unit: Make) -> None:
    file = "[Service]\nStandardError=append:/var/log/old.log\n# drop-in\nStandardError=append:/var/log/new.log\n"
    assert unit(file=file, StandardError="append").log().describe() == "/var/log/new.log"
    assert unit(StandardError="append").log().describe() == "journal of sglang.service"


def test_a_promised_log_comes_first(unit: Make) -> None:
    assert unit(log="/srv/sglang.log", StandardError="append:/var/log/e.log").log().describe() == "/srv/sglang.log"


def test_argv_of_a_unit_that_does_not_run_comes_from_its_file(unit: Make) -> None:
    start = "{ path=/usr/bin/sglang ; argv[]=/usr/bin/sglang serve --api-key sesame --tp-size 4 ; ignore_errors=no ; pid=0 }"
    assert unit(ExecStart=start).argv() == ("/usr/bin/sglang", "serve", "--api-key", "<redacted>", "--tp-size", "4")
    assert unit().argv() == ()


def test_another_process_makes_the_same_controller_from_its_description(unit: Make) -> None:
    controller = unit()
    again = control.from_description(json.loads(json.dumps(controller.description())))
    assert again.description() == controller.description()
    again.start()
    assert controller.state().active
    again.stop(1.0)
    with pytest.raises(ControlError, match="kind 'rocket'"):
        control.from_description({"kind": "rocket"})


def test_a_user_without_rights_is_told_the_line_that_grants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str], timeout_s: float = 0.0) -> control.Ran:
        asked.append(list(argv))
        if argv[0] == "sudo":
            return control.Ran(1, "", "a password is required")
        return control.Ran(0, "LoadState=loaded\nType=simple\n", "")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(systemd.control, "run", run)
    controller = Systemd("sglang.service", url="http://127.0.0.1:1", clock=SystemClock())
    why = controller.may_control()
    assert why is not None
    assert "NOPASSWD: /usr/bin/systemctl --no-ask-password start sglang.service, /usr/bin/systemctl --no-ask-password stop" in why
    assert ["sudo", "-n", "-l", "systemctl", "--no-ask-password", "start", "sglang.service"] in asked
    assert not any(call[:2] == ["sudo", "-n"] and call[2] != "-l" for call in asked)
    monkeypatch.setattr(systemd.control, "run", lambda argv, timeout_s=0.0: control.Ran(0, "LoadState=loaded\n", ""))
    assert controller.may_control() is None
    assert Systemd("user:x.service", url="u", clock=SystemClock()).may_control() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1min 30s", 90.0),
        ("5s", 5.0),
        ("100ms", 0.1),
        ("2h", 7200.0),
        ("infinity", None),
        ("", None),
        ("0", 0.0),
        ("soon", None),
        ("30min", 1800.0),
    ],
)
def test_time_spans_of_systemd_are_read(text: str, seconds: float | None) -> None:
    assert span_s(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_make_chooses_the_controller_that_the_rig_file_names(tmp_path: Path) -> None:
    def kind(**promised: object) -> str:
        server = ServerPromise(url="http://127.0.0.1:1", **promised)  # type: ignore[arg-type]
        return control.make(server, clock=SystemClock(), run_dir=tmp_path).kind

    assert kind(systemd="a.service") == "systemd"
    assert kind(command=("a",)) == "command"
    assert kind(container="a") == "container"
    assert kind() == "attach"


def test_tools_that_hang_or_cannot_run_are_values(tmp_path: Path) -> None:
    assert "longer than" in control.run([sys.executable, "-S", "-c", "import time; time.sleep(5)"], timeout_s=0.2).err
    assert control.run([str(tmp_path)]).code is None


def test_ports_of_urls() -> None:
    assert [control.port_of(url) for url in ("http://h:81/x", "http://h", "https://h")] == [81, 80, 443]


def test_a_port_that_is_taken_over_by_another_is_named() -> None:
    """Somebody listens where the server did, as soon as it is gone; who was on another address before is left out."""
    code = (
        "import socket,sys,time; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); "
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(60)"
    )

    def listen(number: int = 0) -> subprocess.Popen[str]:
        made = subprocess.Popen([sys.executable, "-S", "-c", code, str(number)], stdout=subprocess.PIPE, text=True)
        assert made.stdout is not None
        ports.append(int(made.stdout.readline()))
        return made

    ports: list[int] = []
    server = listen()
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", ports[0]))
        elsewhere.listen()
        standing = control.Standing(server.pid, ports[0])
        another = listen(ports[0])
        try:
            server.kill()
            server.wait()
            with pytest.raises(
                ControlError, match=f"x was stopped, but port {ports[0]} is still taken by pid {another.pid} "
            ) as caught:
                standing.prove_gone("x", -1.9)
            assert str(os.getpid()) not in str(caught.value)
        finally:
            another.kill()
            another.wait()
        standing.prove_gone("x", 5.0)
    for each in (server, another):
        assert each.stdout is not None
        each.stdout.close()
