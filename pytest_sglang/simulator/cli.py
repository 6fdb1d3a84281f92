"""The simulated server alone, in the foreground, for trying out whatever talks to an SGLang."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.unit import Unit


class _Ended(Exception):
    """A signal asked for the end."""


def simulate(port: int, faults: Sequence[str], directory: Path | None = None, *, speed: float = 100.0) -> int:
    """Run a simulated server on ``port`` until SIGINT or SIGTERM, its log on the terminal; everything is removed afterwards.

    Gives 0, or 1 when the server ended by itself. Faults act from the first start on.
    """
    chosen = directory or Path(tempfile.mkdtemp(prefix="pytest-sglang-simulated-"))
    rig = SimulatedRig(chosen)
    before = {each: signal.signal(each, _end) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        rig = SimulatedRig.create(chosen, faults=faults, port=port, speed=speed, faults_at_once=True)
        print(f"SIMULATED SGLang on {rig.url}, caches and log in {rig.directory}; Ctrl-C ends it", flush=True)
        skipped = rig.log.stat().st_size
        rig.start()
        return _follow(rig, skipped)
    except _Ended:
        return 0
    finally:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        rig.destroy()
        for each, handler in before.items():
            signal.signal(each, handler)


def _end(signum: int, frame: FrameType | None) -> None:
    raise _Ended


def _follow(rig: SimulatedRig, position: int) -> int:
    """Show the log as it grows, until the server is gone."""
    unit = Unit(rig.config)
    with open(rig.log, "rb") as file:
        file.seek(position)
        while True:
            alive = unit.state().lives()
            sys.stdout.buffer.write(file.read())
            sys.stdout.buffer.flush()
            if not alive:
                print("SIMULATED SGLang ended by itself", flush=True)
                return 1
            time.sleep(0.05)
