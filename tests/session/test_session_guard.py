from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from session_fakes import DIAL, Victim, environment, read_dial, set_dial, until

from pytest_sglang.session import guard as module
from pytest_sglang.session.guard import Guard, GuardError
from pytest_sglang.session.journal import Journal, open_entries
from pytest_sglang.session.state import Owner, started_ticks
from pytest_sglang.session.undo import undo

Victims = Callable[..., Victim]


def gone(pid: int) -> bool:
    return started_ticks(pid) is None


def at(path: Path, value: int) -> Callable[[], bool]:
    return lambda: read_dial(path) == value


def test_kill_9_of_the_run_undoes_everything_within_10_seconds(
    state: Path, dials: list[Path], victims: Victims, tmp_path: Path
) -> None:
    victim = victims("run-1", *dials).wait_changed()
    assert [read_dial(each) for each in dials] == [250, 250, 250]
    victim.kill()
    until(lambda: [read_dial(each) for each in dials] == [350, 351, 352], limit_s=10)
    until(lambda: gone(victim.guard_pid))
    assert (tmp_path / "order").read_text() == "3\n2\n1\n"
    assert open_entries(state) == []
    log = (tmp_path / "reports" / "run-1" / "guard.log").read_text()
    assert log.count("run run-1 is dead: undone: ") == 3
    assert (state / "guard.log").read_text() == log


def test_what_somebody_else_changed_meanwhile_is_untouched(state: Path, dials: list[Path], victims: Victims) -> None:
    victim = victims("run-1", *dials).wait_changed()
    set_dial(dials[1], 300)
    victim.kill()
    until(lambda: gone(victim.guard_pid))
    assert [read_dial(each) for each in dials] == [350, 300, 352]
    assert "not ours any more" in (state / "guard.log").read_text()


def test_the_guard_outlives_what_a_cancelled_job_sends(dials: list[Path], victims: Victims) -> None:
    victim = victims("run-1", dials[0]).wait_changed()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        os.kill(victim.guard_pid, number)
    os.killpg(victim.process.pid, signal.SIGKILL)
    victim.kill()
    until(at(dials[0], 350))


def test_the_guard_is_deaf_from_its_first_instruction(state: Path, tmp_path: Path, dials: list[Path]) -> None:
    """The launcher gets SIGTERM as soon as it exists, long before its interpreter is up."""
    code = (
        "import os, signal, subprocess, sys, threading; from pathlib import Path\n"
        "from pytest_sglang.session.guard import Guard\n"
        "real = subprocess.Popen\n"
        "class Popen(real):\n"
        "    def __init__(self, *a, **k):\n"
        "        super().__init__(*a, **k); self.send_signal(signal.SIGTERM); self.send_signal(signal.SIGINT)\n"
        "subprocess.Popen = Popen\n"
        "guard = Guard.start(Path(sys.argv[1]), 'run', Path(sys.argv[2])); print(guard.alive(), guard.close())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(state), str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(state),
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("True 0", "")


def test_it_is_out_of_the_runs_session_tree_and_tracking(state: Path, dials: list[Path], victims: Victims) -> None:
    variables = {"RUNNER_TRACKING_ID": "github_1", "JENKINS_NODE_COOKIE": "j", "BUILD_ID": "7", "KEPT": "yes"}
    victim = victims("run-1", dials[0], **variables).wait_changed()
    stat = Path(f"/proc/{victim.guard_pid}/stat").read_text().rsplit(")", 1)[1].split()
    parent, session, terminal = int(stat[1]), int(stat[3]), int(stat[4])
    assert parent != victim.process.pid
    assert os.getsid(victim.process.pid) != session
    assert terminal == 0
    names = {each.partition("=")[0] for each in Path(f"/proc/{victim.guard_pid}/environ").read_text().split("\0")}
    assert not names & set(module.TRACKING_VARIABLES)
    assert "KEPT" in names
    assert os.readlink(f"/proc/{victim.guard_pid}/cwd") == "/"
    files = set()
    for each in Path(f"/proc/{victim.guard_pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it closes what it reads
            files.add(os.readlink(each))
    assert files
    assert not {each for each in files if each.endswith((".lock", ".jsonl"))}


def test_a_forked_child_of_the_run_does_not_keep_the_guard_from_seeing_its_death(dials: list[Path], victims: Victims) -> None:
    victim = victims("run-1", dials[0], VICTIM_FORKS="1").wait_changed()
    try:
        victim.kill()
        until(at(dials[0], 350))
    finally:
        os.killpg(victim.process.pid, signal.SIGKILL)


def test_kill_9_of_run_and_guard_is_undone_by_hand(state: Path, dials: list[Path], victims: Victims) -> None:
    victim = victims("run-1", *dials).wait_changed()
    os.kill(victim.guard_pid, signal.SIGKILL)
    victim.kill()
    until(lambda: gone(victim.guard_pid))
    time.sleep(0.3)
    assert [read_dial(each) for each in dials] == [250, 250, 250]
    assert [each.action for each in undo(state, dry_run=True)] == ["would undo"] * 3
    assert [each.action for each in undo(state)] == ["undone"] * 3
    assert [read_dial(each) for each in dials] == [350, 351, 352]


def test_an_orderly_end_lets_the_guard_go(state: Path, dials: list[Path], victims: Victims, tmp_path: Path) -> None:
    victim = victims("run-1", dials[0]).wait_changed()
    assert victim.tell("resolve") == "resolved"
    assert victim.tell("close") == "closed 0 0"
    until(lambda: gone(victim.guard_pid))
    assert not gone(victim.process.pid), "the run itself lives on"
    assert not (state / "guard.log").exists()
    assert not (tmp_path / "reports" / "run-1" / "guard.log").exists(), "an empty log is not left in the report"


def test_what_the_run_could_not_put_back_the_guard_does_after_its_end(dials: list[Path], victims: Victims) -> None:
    victim = victims("run-1", dials[0], dials[1]).wait_changed()
    assert victim.tell("close") == "closed 2 2"
    assert not gone(victim.guard_pid)
    assert read_dial(dials[0]) == 250, "hands off as long as the owner lives"
    victim.process.stdin.close()
    assert victim.process.wait(timeout=10) == 0
    until(lambda: [read_dial(each) for each in dials[:2]] == [350, 351])
    until(lambda: gone(victim.guard_pid))


def test_a_failure_is_tried_again(state: Path, dials: list[Path], victims: Victims) -> None:
    broken = dials[0].with_name("broken")
    broken.write_text("")
    victim = victims("run-1", dials[0], VICTIM_CONTEXT=json.dumps({"broken": str(broken)})).wait_changed()
    victim.kill()
    until((state / "guard.log").exists)
    assert "could not be put back" in (state / "guard.log").read_text()
    assert read_dial(dials[0]) == 250
    broken.unlink()
    until(at(dials[0], 350))
    until(lambda: gone(victim.guard_pid))


def test_it_gives_up_with_the_command_to_do_it_by_hand(
    state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S", (0.01, 0.01))
    broken = dials[0].with_name("broken")
    broken.write_text("")
    journal = Journal(state, Owner.me("run-1")._replace(started=1))
    journal.record(DIAL, str(dials[0]), 350, 250, {"broken": str(broken)})
    set_dial(dials[0], 250)
    module.undo_all(state, "run-1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, "told once, though tried three times"
    assert lines[1].endswith("not everything could be undone; by hand: pytest-sglang undo")


def test_it_waits_for_a_later_run_on_the_same_rig_and_then_undoes(
    state: Path, dials: list[Path], victims: Victims, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "OTHERS_LOOK_S", 0.02)
    later = victims("later-run", dials[1]).wait_changed()
    journal = Journal(state, Owner.me("run-1")._replace(started=1))
    journal.covers([f"dial {dials[1]}"])
    journal.record(DIAL, str(dials[0]), 350, 250)
    set_dial(dials[0], 250)
    work = threading.Thread(target=module.undo_all, args=(state, "run-1"), daemon=True)
    work.start()
    until((state / "guard.log").exists)
    work.join(1.5)  # longer than a second: the other's age, which the line tells, has grown
    assert work.is_alive(), "it must not give up"
    assert read_dial(dials[0]) == 250
    later.tell("resolve")
    later.tell("close")
    later.close()
    work.join(20)
    assert not work.is_alive()
    assert read_dial(dials[0]) == 350
    told = [line for line in capsys.readouterr().err.splitlines() if "run-1 is dead: " in line]
    assert [f"pid {later.process.pid}" in line for line in told] == [True, False], "the waiting is told once"


def test_a_wiped_workspace_does_not_stop_it(state: Path, dials: list[Path], victims: Victims, tmp_path: Path) -> None:
    import shutil

    victim = victims("run-1", dials[0]).wait_changed()
    shutil.rmtree(tmp_path / "reports")
    victim.kill()
    until(at(dials[0], 350))
    until(lambda: gone(victim.guard_pid))
    assert "undone: " in (state / "guard.log").read_text()


def test_a_killed_guard_is_noticed_and_replaced(state: Path, tmp_path: Path) -> None:
    guard = Guard.start(state, "run-1", tmp_path / "guard.log")
    first = guard.pid
    assert guard.alive()
    guard.ensure()
    assert guard.pid == first
    os.kill(first, signal.SIGKILL)
    until(lambda: not guard.alive())
    guard.ensure()
    assert guard.alive()
    assert guard.pid != first
    assert guard.close() == 0
    assert guard.close() == 0
    assert not guard.alive()


def test_closing_after_the_guard_was_killed_is_no_error(state: Path, tmp_path: Path) -> None:
    guard = Guard.start(state, "run-1", tmp_path / "guard.log")
    os.kill(guard.pid, signal.SIGKILL)
    until(lambda: not guard.alive())
    assert guard.close() == 0


def test_starting_it_is_cheap(state: Path, tmp_path: Path) -> None:
    costs: list[float] = []
    # the best of several: other work on a small machine is not the guard's cost
    while len(costs) < 20 and min(costs, default=math.inf) >= 0.15:
        begin = time.perf_counter()
        guard = Guard.start(state, f"run-{len(costs)}", tmp_path / "guard.log")
        costs.append(time.perf_counter() - begin)
        guard.close()
    assert min(costs) < 0.15


def test_a_guard_that_cannot_start_says_why(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "guard.log"
    monkeypatch.setattr(module.sys, "executable", "/no/such/python")
    with pytest.raises(GuardError, match="No such file or directory: '/no/such/python'"):
        Guard.start(state, "run-1", log)
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho 'ModuleNotFoundError: pytest_sglang' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(failing))
    with pytest.raises(
        GuardError, match=r"did not start, so nothing is changed: ModuleNotFoundError: pytest_sglang \(its log: .*guard.log\)"
    ):
        Guard.start(state, "run-1", log)


def test_a_log_that_cannot_be_written_is_told_before_anything_is_changed(state: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GuardError, match=r"could not be started, so nothing is changed: .*/file'"):
        Guard.start(state, "run-1", tmp_path / "file" / "guard.log")


def test_a_run_that_died_before_its_guard_was_up_is_undone(state: Path, tmp_path: Path, dials: list[Path]) -> None:
    """The guard is started for a pid that is dead already: what its journal holds is undone at once."""
    journal = Journal(state, Owner.me("run-1")._replace(started=1))
    journal.record(DIAL, str(dials[0]), 350, 250)
    set_dial(dials[0], 250)
    ours, theirs = module.socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest_sglang.session.guard",
                "--state",
                str(state),
                "--run",
                "run-1",
                "--owner",
                "999999:1",
                "--fd",
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            env=environment(state),
            check=True,
            timeout=20,
            stderr=subprocess.DEVNULL,
        )
    until(at(dials[0], 350))


@pytest.mark.parametrize("folder", ["site-packages", "somewhere"])
def test_the_guard_finds_the_package_that_runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder / "pytest_sglang" / "session" / "guard.py"
    monkeypatch.setattr(module, "__file__", str(place))
    monkeypatch.setenv("PYTHONPATH", f"relative{os.pathsep}/absolute")
    monkeypatch.chdir(tmp_path)
    paths = module._environment()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path / "relative"), "/absolute", *([str(tmp_path / folder)] if folder == "somewhere" else [])]


def test_without_pidfd_it_still_sees_the_death(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    child = subprocess.Popen(["sleep", "30"])
    ours, theirs = module.socket.socketpair()
    with ours, theirs:
        watch = module.Watch(theirs, child.pid, started_ticks(child.pid) or 0, state, "run-1")
        watch.hello()
        assert ours.recv(100).startswith(b"ready ")
        ours.sendall(b"noise\n")
        child.kill()
        assert watch.until_death() is False
    child.wait()


def test_the_end_of_the_socket_alone_is_not_death(state: Path) -> None:
    """The run may have lost its end of the socket; as long as it lives, its changes are its own."""
    child = subprocess.Popen(["sleep", "1"])
    ours, theirs = module.socket.socketpair()
    ours.close()
    with theirs:
        watch = module.Watch(theirs, child.pid, started_ticks(child.pid) or 0, state, "run-1")
        watch.hello()
        begin = time.monotonic()
        assert watch.until_death() is False
        assert time.monotonic() - begin > 0.5
    child.wait()


def test_a_note_that_cannot_be_written_does_not_stop_the_undoing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module.say(state / "missing", "a note")
    assert capsys.readouterr().err.endswith(" a note\n")
