"""Why a server died or hangs, as far as it can be proved."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Sequence

from pytest_sglang.server import control
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.phases import Timeline

_KILLED = re.compile(r"(?:Killed process|oom_reaper: reaped process) (\d+)")


def kernel_killed(pids: Collection[int], dmesg: Sequence[str] = ("dmesg",)) -> str | None:
    """The kernel's own line about killing one of ``pids`` for want of memory; None without one, or where we may not read it."""
    if not pids:
        return None
    ran = control.run(dmesg, timeout_s=5.0)
    for line in ran.out.splitlines() if ran.code == 0 else ():
        match = _KILLED.search(line)
        if match is not None and int(match[1]) in pids:
            return line.strip()[:300]
    return None


def cause(state: ControlState, timeline: Timeline, pids: Collection[int], dmesg: Sequence[str] = ("dmesg",)) -> str:
    """The most likely cause of a death in one line.

    SGLang SIGKILLs its own tree on a failure, so that exit code -9 or 137 is its normal failure exit: the out-of-memory killer is
    blamed only where the owner (systemd, the container engine) or the kernel's log says so.
    """
    if timeline.failure is not None and timeline.failure.kind != "killed-itself":
        return timeline.failure.cause
    if state.result == "oom-kill":
        return "the kernel killed it for want of memory (its owner says oom-kill)"
    if state.exit_code in (-9, 137, None):
        line = kernel_killed(pids, dmesg)
        if line is not None:
            return f"the kernel killed it for want of memory: {line}"
    if state.result == "start-limit-hit":
        return "systemd refuses to start it again (start-limit-hit): it had died too often before"
    if state.result == "timeout":
        return "systemd ended it, because the start took longer than its TimeoutStartSec (or the stop than TimeoutStopSec)"
    if state.exit_code in (-9, 137):
        return "killed by SIGKILL, with no traceback in the log (SGLang ends itself so on a failure: no sign of want of memory)"
    if state.exit_code is not None:
        how = f"signal {-state.exit_code}" if state.exit_code < 0 else f"exit code {state.exit_code}"
        return f"it ended with {how}, with no traceback in the log"
    return f"its process is gone ({state.detail or 'nothing more is known'})"


def stacks(pids: Collection[int], limit: int = 4) -> str:
    """Python stacks of the processes by py-spy, "" where it is not installed or may not look."""
    if shutil.which("py-spy") is None:
        return ""
    found = []
    for pid in list(pids)[:limit]:
        ran = control.run(["py-spy", "dump", "--pid", str(pid)], timeout_s=10.0)
        if ran.code == 0:
            found.append(ran.out.strip())
    return "\n\n".join(found)
