"""Why a server died: the kernel is blamed only where it says so itself, in any of the forms in which it does. And real stacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.server import deaths
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.deaths import Evidence, Kills
from pytest_sglang.server.log import TextLog, split
from pytest_sglang.server.phases import timeline

EMPTY = timeline([])
NOTHING = (("true",),)
KILLED = ControlState(active=False, result="signal", exit_code=-9)
ECHO = "[2026-01-02 03:04:05] server_args={'model_path': 'm'}\n"


def said(tmp_path: Path, text: str) -> tuple[tuple[str, ...], ...]:
    """A command in place of dmesg that prints this."""
    path = tmp_path / "kernel.log"
    path.write_text(text)
    return (("cat", str(path)),)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (ControlState(active=False, result="oom-kill", exit_code=-9), "its owner says oom-kill"),
        (KILLED, "no sign of want of memory"),
        (ControlState(active=False, result="exit-code", exit_code=137), "no sign of want of memory"),
        (ControlState(active=False, result="exit-code", exit_code=2), "exit code 2"),
        (ControlState(active=False, result="signal", exit_code=-11), "signal 11"),
        (ControlState(active=False, result="start-limit-hit"), "start-limit-hit"),
        (ControlState(active=False, result="timeout", exit_code=-15), "TimeoutStartSec"),
        (ControlState(active=False, detail="inactive (dead)"), "inactive (dead)"),
    ],
)
def test_the_cause_of_a_death_is_only_what_can_be_proved(state: ControlState, cause: str) -> None:
    assert cause in deaths.cause(state, EMPTY, Evidence(pids=frozenset({4711})), NOTHING)


# forms of mm/oom_kill.c: 6.x, its summary, 4.x, the reaper's, and a line as journalctl -o short-monotonic shows it
FORMS = {
    "6.x": "[  912.339] Out of memory: Killed process 4711 (sglang::schedul) total-vm:93kB, anon-rss:9kB, file-rss:0kB, "
    "shmem-rss:0kB, UID:0 pgtables:9kB oom_score_adj:0",
    "cgroup": "[  912.339] Memory cgroup out of memory: Killed process 4711 (python3) total-vm:93kB, anon-rss:9kB",
    "summary": "[  912.338] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=sglang.service,mems_allowed=0,"
    "oom_memcg=/system.slice/sglang.service,task_memcg=/system.slice/sglang.service,task=python3,pid=4711,uid=1000",
    "4.x": "[  912.339144] Killed process 4711 (python3) total-vm:93kB, anon-rss:9kB, file-rss:0kB, shmem-rss:0kB",
    "reaper": "[  912.402] oom_reaper: reaped process 4711 (python3), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
    "journal": "[  912.339144] attic kernel: Out of memory: Killed process 4711 (python3) total-vm:93kB, anon-rss:9kB",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_is_blamed_by_its_own_line_about_this_very_process(form: str, tmp_path: Path) -> None:
    log = said(tmp_path, f"[  900.1] usb 1-1: new device\n{FORMS[form]}\n[  913.0] eth0: link up\n")
    told = deaths.cause(KILLED, EMPTY, Evidence(pids=frozenset({17, 4711})), log)
    assert "the kernel killed it for want of memory" in told
    assert FORMS[form].strip()[:60] in told
    assert "no sign of want of memory" in deaths.cause(KILLED, EMPTY, Evidence(pids=frozenset({471})), log)


def test_a_line_from_before_the_launch_is_about_somebody_who_had_the_pid_then(tmp_path: Path) -> None:
    log = said(tmp_path, FORMS["6.x"])
    then = Evidence(pids=frozenset({4711}), launched_since_boot_s=2000.0)
    assert "no sign of want of memory" in deaths.cause(KILLED, EMPTY, then, log)
    now = Evidence(pids=frozenset({4711}), launched_since_boot_s=850.0)
    assert "for want of memory" in deaths.cause(KILLED, EMPTY, now, log)


def test_the_first_kernel_log_that_may_be_read_counts(tmp_path: Path) -> None:
    log = (("false",), *said(tmp_path, FORMS["journal"]))
    assert "Killed process 4711" in (deaths.kernel_killed({4711}, log) or "")
    assert deaths.kernel_killed({4711}, (("no-such-tool-here",),)) is None
    assert deaths.kernel_killed(set(), log) is None


V2 = "low 0\nhigh 0\nmax 12\noom 1\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.mark.parametrize(
    ("groups", "file", "form"),
    [
        ("0::/system.slice/sglang.service\n", "system.slice/sglang.service/memory.events", V2),
        ("9:name=systemd:/x\n4:memory:/docker/ab12\n0::/\n", "memory/docker/ab12/memory.oom_control", V1),
    ],
    ids=["v2", "v1"],
)
def test_a_control_group_that_counts_a_kill_is_a_witness(groups: str, file: str, form: str, tmp_path: Path) -> None:
    count, proc = tmp_path / "cgroup" / file, tmp_path / "proc"
    count.parent.mkdir(parents=True)
    count.write_text(form.format(3))
    (proc / "4711").mkdir(parents=True)
    (proc / "4711" / "cgroup").write_text(groups)
    before = deaths.kills_of(4711, root=tmp_path / "cgroup", proc=proc)
    assert before == Kills(str(count), 3)
    assert "no sign of want of memory" in deaths.cause(KILLED, EMPTY, Evidence(kills=before), NOTHING)
    count.write_text(form.format(4))
    assert "oom_kill rose from 3 to 4" in deaths.cause(KILLED, EMPTY, Evidence(kills=before), NOTHING)
    # the group goes with its unit: then only the owner can tell
    count.unlink()
    assert "no sign of want of memory" in deaths.cause(KILLED, EMPTY, Evidence(kills=before), NOTHING)
    assert deaths.kills_of(4712, root=tmp_path / "cgroup", proc=proc) is None


def test_a_lost_rank_is_the_kernels_doing_where_it_says_so_and_else_what_the_log_tells(tmp_path: Path) -> None:
    lost = timeline(split(f"{ECHO}[2026-01-02 03:04:06] Rank 0 scheduler died during initialization (exit code: -9)\n"))
    seen = Evidence(pids=frozenset({4711}))
    assert "Killed process 4711" in deaths.cause(KILLED, lost, seen, said(tmp_path, FORMS["6.x"]))
    assert deaths.cause(KILLED, lost, seen, NOTHING).startswith("Rank 0 scheduler died during initialization")


def test_the_first_traceback_comes_before_everything(tmp_path: Path) -> None:
    found = timeline(
        split(f"{ECHO}[2026-01-02 03:04:05] Scheduler hit an exception: Traceback (most recent call last):\n  x\nValueError: bad\n")
    )
    oom = ControlState(active=False, result="oom-kill", exit_code=-9)
    assert deaths.cause(oom, found, Evidence(pids=frozenset({4711})), said(tmp_path, FORMS["6.x"])) == "ValueError: bad"


def test_a_death_while_serving_is_told_from_the_log_of_the_newest_start() -> None:
    log = ECHO + (
        "[2026-01-02 03:04:06] The server is fired up and ready to roll!\n"
        "[2026-01-02 04:00:00] Subprocess scheduler_TP1 (pid=4712) crashed with exit code -9. Triggering SIGQUIT for cleanup...\n"
        "[2026-01-02 04:00:00] SIGQUIT received. signum=None, frame=None. It usually means one child failed.\n"
    )
    cause, last = deaths.while_serving(KILLED, TextLog(log), Evidence())
    assert cause.startswith("Subprocess scheduler_TP1 (pid=4712) crashed with exit code -9")
    assert "SIGQUIT" in last[-1]


# --- restarts ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (0, ControlState(active=False, detail="failed (failed)", restarts=0), None),
        (None, ControlState(active=False, detail="exit 1"), None),
        (0, ControlState(active=False, detail="activating (auto-restart)", restarts=0), "activating (auto-restart)"),
        (0, ControlState(active=True, pid=9, restarts=1), "1 time: pid 9 runs now"),
        (2, ControlState(active=False, detail="failed (failed)", restarts=5), "3 times: now failed (failed)"),
    ],
)
def test_a_restart_by_its_owner_is_told(before: int | None, now: ControlState, told: str | None) -> None:
    found = deaths.restarted(before, now)
    assert (found is None) if told is None else (found is not None and told in found)


# --- stacks -----------------------------------------------------------------------------------------------------------------------

STUCK = "import time\ndef waits_for_a_peer():\n    time.sleep(600)\nprint('there', flush=True)\nwaits_for_a_peer()\n"


def test_stacks_are_taken_where_py_spy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "py_spy", lambda: None)
    assert deaths.stacks({1: "main"}) == ""
    tool = tmp_path / "py-spy"
    tool.write_text('#!/bin/sh\necho "Process $3: python"\necho\necho "Thread $3 (idle)"\necho "    recv (pipe.py:3)"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(deaths, "py_spy", lambda: str(tool))
    assert deaths.stacks({1: "main", 2: "scheduler"}) == "pid 1 main, pid 2 scheduler:\nThread (idle)\n    recv (pipe.py:3)"


@pytest.mark.parametrize("stopped", [False, True])
def test_real_stacks_of_a_stuck_process(stopped: bool) -> None:
    tool = deaths.py_spy()
    assert tool is not None, "py-spy belongs to the test group"
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        tried = subprocess.run([tool, "dump", "--pid", str(process.pid)], capture_output=True, text=True)
        if "Permission" in tried.stderr or "Operation not permitted" in tried.stderr:
            pytest.skip(f"this host lets nobody look into processes: {tried.stderr.strip()[:100]}")
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while "waits_for_a_peer" not in (found := deaths.stacks({process.pid: "it"}, stopped={process.pid} if stopped else ())):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        assert found.startswith(f"pid {process.pid} it:\nThread")
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None
