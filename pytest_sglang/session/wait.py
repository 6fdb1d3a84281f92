"""``pytest-sglang wait``: follow the start in progress, whoever started it, phase by phase until the server is ready."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytest_sglang.record import run as records
from pytest_sglang.record import units
from pytest_sglang.record.clock import Clock, SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.session import expected, live, promise, simulated
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.expected import Expected
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.state import Owner, state_dir

NOTHING_S = 5.0
"""Seconds without a process, a log or an answer after which there is no start to follow."""


def run(options: RunOptions, *, limit_s: float | None, as_json: bool, quiet: bool = False) -> int:
    """Exit code 0 when ready, 1 when the start died or hangs, 6 when the limit is reached first. Changes nothing."""
    rig = promise.resolve(options)
    simulation = None
    journal = None
    clock: Clock = SystemClock()
    try:
        if options.simulated:
            journal = Journal(state_dir(), Owner.me("wait"))
            simulation = simulated.begin_start(options, journal)
            rig, clock = simulated.promised(rig, simulation), simulation.rig.clock
        if rig.server is None:
            raise Refused(f"{rig.path}: no [server] table, so there is no start to follow")
        with tempfile.TemporaryDirectory(prefix="pytest-sglang-") as scratch:
            usual = expected.read(options.report_dir, rig=rig.name, server=rig.server, simulated=options.simulated)
            printer = _Printer(as_json, quiet, usual, "SIMULATED " if options.simulated else "")
            return _follow(rig.server, rig.start, clock, simulation, Path(scratch), limit_s, printer)
    finally:
        if simulation is not None and journal is not None:
            simulation.close(journal)
            journal.close()


def _follow(server: Any, start: Any, clock: Clock, simulation: Any, scratch: Path, limit_s: float | None, printer: _Printer) -> int:
    from pytest_sglang.server import control, ready
    from pytest_sglang.server.http import ControlPlane

    controller = control.make(server, clock=clock, run_dir=scratch, systemctl=simulation.rig.systemctl if simulation else None)
    state = controller.state()
    key = os.environ.get(server.api_key_env) if server.api_key_env else None
    with ControlPlane(server.url, key) as plane:
        if not state.active and plane.health() is None:
            raise Refused(
                f"no start to follow: {controller.subject} is not running ({state.detail}) and {server.url} does not answer"
            )
        budget = (start.cold_s if start is not None and start.cold_s else None) or 1800.0
        try:
            startup = ready.wait_ready(
                controller=controller,
                plane=plane,
                log=controller.log(),
                clock=clock,
                launched_at=state.started_at if state.started_at is not None else clock.time(),
                budget_s=budget,
                silence_s=start.silence_s if start is not None else 300.0,
                phases_s=start.phases_s if start is not None else None,
                give_up_s=limit_s if limit_s is not None else 2 * budget,
                expected_s=printer.usual.warm_s,
                progress=printer.show,
            )
        except ready.StartFailed as failed:
            return printer.failed(failed)
    return printer.ready(startup)


class _Printer:
    """One line that moves on standard error (plain lines in a CI log, nothing when quiet), then the time line on standard output."""

    def __init__(self, as_json: bool, quiet: bool, usual: Expected, prefix: str) -> None:
        self.as_json, self.quiet, self.usual, self.prefix = as_json, quiet, usual, prefix
        self.line = live.MovingLine(sys.stderr, quiet=quiet or as_json, prefix=prefix)

    def show(self, progress: Any) -> None:
        """Called often while waiting."""
        self.line.update(live.text(progress, self.usual.of(cold=progress.compiles)))

    def ready(self, startup: Startup) -> int:
        """The time line of the finished start."""
        self.line.update(None)
        if self.as_json:
            print(json.dumps({"ready": True, "startup": records.plain(startup)}))
            return 0
        if self.quiet:
            return 0
        for phase in startup.phases:
            length = "" if phase.end_s is None else units.duration(phase.end_s - phase.begin_s)
            print(f"{self.prefix}{units.duration(phase.begin_s):>13}  {phase.id:16} {length:>12}")
        kind = {"cold": "a cold start", "warm": "a warm start"}.get(startup.kind, "a start")
        print(
            f"{self.prefix}ready after {units.duration(startup.ready_s or 0.0)}: {kind}, {startup.autotune_runs or 0} autotuning runs in the log"
        )
        return 0

    def failed(self, failed: Any) -> int:
        """Died, hung, or not ready in time."""
        self.line.update(None)
        gave_up = failed.kind == "not ready"
        if self.as_json:
            print(
                json.dumps(
                    {"ready": False, "why": failed.kind, "phase": failed.phase, "cause": failed.cause, "message": str(failed)}
                )
            )
        else:
            print(f"{self.prefix}{failed}", file=sys.stderr)
        return records.EXIT_CODES["inconclusive"] if gave_up else 1
