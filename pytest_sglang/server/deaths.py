"""Why a server died or hangs, as far as it can be proved."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pytest_sglang.record.values import Value
from pytest_sglang.server import control, phases
from pytest_sglang.server import log as logs
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.log import LogSource
from pytest_sglang.server.phases import Timeline
from pytest_sglang.server.start import select

# mm/oom_kill.c of Linux 4.4 to 6.12; a line may be led by dmesg's "[12345.678901] " or journalctl's "[12345.678901] host kernel: "
_KILLED = re.compile(
    r"(?:[Kk]illed process (?P<killed>\d+)|oom_reaper: reaped process (?P<reaped>\d+)|oom-kill:constraint=.*?,pid=(?P<chosen>\d+),)"
)
_SINCE_BOOT = re.compile(r"^\s*(?:<\d+>)?\[\s*(\d+\.\d+)\]")
KERNEL_LOGS: tuple[tuple[str, ...], ...] = (
    ("dmesg",),
    ("journalctl", "--dmesg", "--boot", "--no-pager", "--output=short-monotonic"),
)
"""The first that may be read counts: dmesg is often root's alone, the journal also belongs to groups adm and systemd-journal."""
_FALLOUT = ("killed-itself", "rank-died", "process-died")
"""Kinds of failure with which SGLang tells that a process of its tree is gone, and not why."""
_SIGKILL = (-9, 137)
_CGROUPS = Path("/sys/fs/cgroup")


def kernel_killed(
    pids: Collection[int], logs: Sequence[Sequence[str]] = KERNEL_LOGS, *, since_boot_s: float | None = None
) -> str | None:
    """The kernel's own line about killing one of ``pids`` for want of memory; None without one, or where we may not read it.

    ``since_boot_s``: lines from before this moment (seconds since boot) are about somebody who had the pid earlier.
    """
    if not pids:
        return None
    ran = next((each for each in (control.run(log, timeout_s=5.0) for log in logs) if each.code == 0), None)
    for line in ran.out.splitlines() if ran is not None else ():
        match = _KILLED.search(line)
        if match is None or int(match["killed"] or match["reaped"] or match["chosen"]) not in pids:
            continue
        stamp = _SINCE_BOOT.match(line)
        if since_boot_s is None or stamp is None or float(stamp[1]) >= since_boot_s - 1.0:
            return line.strip()[:300]
    return None


class Kills(Value, frozen=True):
    """How often the kernel has killed in a control group for want of memory: its folder, the count then."""

    folder: str
    count: int


def kills_of(pid: int, root: Path = _CGROUPS, proc: Path = Path("/proc")) -> Kills | None:
    """The count of the control group of ``pid``; None where there is none to read (the root group, no such controller).

    cgroup v2: ``oom_kill`` of memory.events; v1: of memory.oom_control (kernel's Documentation/admin-guide).
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if path == "/":
            continue
        if controllers == "":
            folder, name = root / path.lstrip("/"), "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = root / "memory" / path.lstrip("/"), "memory.oom_control"
        else:
            continue
        count = _oom_kills(folder / name)
        if count is not None:
            return Kills(str(folder / name), count)
    return None


def _oom_kills(path: Path) -> int | None:
    try:
        match = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def killed_in(before: Kills | None) -> str | None:
    """What the control group says has happened since ``before``: None = nothing, or it is gone with its unit."""
    if before is None:
        return None
    now = _oom_kills(Path(before.folder))
    if now is None or now <= before.count:
        return None
    return f"{before.folder}: oom_kill rose from {before.count} to {now}"


class Evidence(Value, frozen=True, kw_only=True):
    """What was noted of a server while it lived: pids of its tree, its group's count of kills, launch in seconds since boot."""

    pids: frozenset[int] = frozenset()
    kills: Kills | None = None
    launched_since_boot_s: float | None = None


def since_boot(wall_s: float) -> float:
    """Seconds since boot at the machine's time ``wall_s`` (epoch)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - (time.time() - wall_s)


def cause(state: ControlState, timeline: Timeline, seen: Evidence, kernel_logs: Sequence[Sequence[str]] = KERNEL_LOGS) -> str:
    """The most likely cause of a death in one line.

    SGLang SIGKILLs its own tree on a failure, so that exit code -9 or 137 is its normal failure exit: the out-of-memory killer is
    blamed only where the owner (systemd, the container engine), the control group or the kernel's log says so.
    """
    failure = timeline.failure
    if failure is not None and failure.kind not in _FALLOUT:
        return failure.cause
    if failure is not None or state.exit_code in (*_SIGKILL, None) or state.result == "oom-kill":
        killed = _out_of_memory(state, seen, kernel_logs)
        if killed is not None:
            return killed
    if failure is not None and failure.kind != "killed-itself":
        return failure.cause
    if state.result == "start-limit-hit":
        return "systemd refuses to start it again (start-limit-hit): it had died too often before"
    if state.result == "timeout":
        return "systemd ended it, because the start took longer than its TimeoutStartSec (or the stop than TimeoutStopSec)"
    if state.exit_code in _SIGKILL:
        return "killed by SIGKILL, with no traceback in the log (SGLang ends itself so on a failure: no sign of want of memory)"
    if state.exit_code is not None:
        how = f"signal {-state.exit_code}" if state.exit_code < 0 else f"exit code {state.exit_code}"
        return f"it ended with {how}, with no traceback in the log"
    return f"its process is gone ({state.detail or 'nothing more is known'})"


def _out_of_memory(state: ControlState, seen: Evidence, kernel_logs: Sequence[Sequence[str]]) -> str | None:
    if state.result == "oom-kill":
        return "the kernel killed it for want of memory (its owner says oom-kill)"
    line = kernel_killed(seen.pids, kernel_logs, since_boot_s=seen.launched_since_boot_s) or killed_in(seen.kills)
    return f"the kernel killed it for want of memory: {line}" if line is not None else None


def restarted(before: int | None, now: ControlState) -> str | None:
    """Whether its owner has started it again by itself since ``before`` (its count of restarts then)."""
    times = (now.restarts or 0) - (before or 0)
    if now.pid is None and "auto-restart" not in now.detail and times <= 0:
        return None
    often = f", {times} time{'s' if times > 1 else ''}" if times > 0 else ""
    here = f"pid {now.pid} runs now" if now.pid is not None else f"now {now.detail}"
    return f"its owner restarted it by itself{often}: {here}"


def while_serving(state: ControlState, log: LogSource, seen: Evidence) -> tuple[str, tuple[str, ...]]:
    """Why a server that had been ready is gone, and the last lines of its log."""
    lines = select(logs.split(log.read()), state.started_at)
    timeline = phases.timeline(lines, launched_at=state.started_at)
    return cause(state, timeline, seen), timeline.last_lines


def stacks(names: Mapping[int, str], *, stopped: Collection[int] = (), limit: int = 8) -> str:
    """Python stacks of the processes by py-spy, equal ones once; "" where it is not installed or may not look.

    ``names``: pid -> what it is, the most telling first. One of ``stopped`` cannot be paused and is read as it stands.
    """
    tool = py_spy()
    if tool is None:
        return ""
    found: dict[str, list[str]] = {}
    for pid, name in list(names.items())[:limit]:
        more = ["--nonblocking"] if pid in stopped else []
        ran = control.run([tool, "dump", *more, "--pid", str(pid)], timeout_s=10.0)
        # the first lines tell command line and Python
        begin = re.search(r"^Thread ", ran.out, re.MULTILINE)
        threads = ran.out[begin.start() :] if begin is not None else ""
        if ran.code == 0 and threads.strip():
            plain = re.sub(r"^(Thread) (?:\d+|0x[0-9A-Fa-f]+)", r"\1", threads.strip(), flags=re.MULTILINE)
            found.setdefault(plain, []).append(f"pid {pid} {name}".rstrip())
    return "\n\n".join(f"{', '.join(who)}:\n{threads}" for threads, who in found.items())


def py_spy() -> str | None:
    """The py-spy to use: on the path, or beside this Python."""
    import shutil
    import sys

    beside = Path(sys.executable).with_name("py-spy")
    return shutil.which("py-spy") or (str(beside) if beside.is_file() else None)
