"""Is that very process still alive? A pid alone may meanwhile be somebody else's."""

from __future__ import annotations

import os
import signal
import time


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot (proc(5), field 22); 0 = no such process, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid: int, ticks: int) -> bool:
    """Whether the process ``pid`` that started at ``ticks`` lives."""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks


def end(pid: int, ticks: int, signum: int = signal.SIGKILL, wait_s: float = 5.0) -> bool:
    """Send ``signum`` to that very process and wait until it is gone; False = it still lives after ``wait_s``."""
    deadline = time.monotonic() + wait_s
    if alive(pid, ticks):
        try:
            os.kill(pid, signum)
            if signum == signal.SIGTERM:
                # as systemd does (systemd.kill(5)): a stopped process could not end
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return True
    while alive(pid, ticks):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
