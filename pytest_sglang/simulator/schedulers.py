"""The scheduler of a simulated server as a process of its own, where a fault needs one: deaf to SIGTERM, it outlives the main process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pytest_sglang.simulator import procs
from pytest_sglang.simulator.state import HardwareState

NAME = "schedulers"
TITLE = "sglang::scheduler_TP0"
"""What SGLang's scheduler calls itself (setproctitle)."""
_CODE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(86400)"


def start(directory: Path, state: HardwareState) -> None:
    """Start one below the calling server; the memory of the serving cards is its own from now on."""
    process = subprocess.Popen(
        [TITLE, "-S", "-c", _CODE],
        executable=sys.executable,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with (directory / NAME).open("a", encoding="ascii") as file:
        file.write(f"{process.pid} {procs.start_ticks(process.pid)}\n")
    # the unit's watcher gives the cards to the main process just after it has made it
    deadline_s = time.monotonic() + 1.0
    while state.owner()[0] != os.getpid() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    state.set_owner(process.pid)


def end_all(directory: Path) -> None:
    """End every one that still lives."""
    try:
        lines = (directory / NAME).read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        pid, _, ticks = line.partition(" ")
        procs.end(int(pid), int(ticks))
