"""Opening a run: sources first, then leftovers of dead runs, locks, guard, and the state as it was found. Refuses before it changes anything."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sglang.record import run as records
from pytest_sglang.record.clock import Clock, SystemClock
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import Rig
from pytest_sglang.session import everybody, hardware, simulated, sources, standing
from pytest_sglang.session.deployment import Deployment, Progress
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.guard import Guard
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.locks import LockHeld, RigLocks
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.recorder import Recorder
from pytest_sglang.session.state import Owner, state_dir
from pytest_sglang.session.undo import undo

if TYPE_CHECKING:
    from pytest_sglang.server.control import Controller
    from pytest_sglang.server.http import ControlPlane


def run_id(options: RunOptions) -> str:
    """Name of a run's folder: when, at which power, and something that keeps two apart."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    levels = options.power_levels_w
    power = (
        "-".join(f"{level:g}W" for level in levels) if len(levels) < 4 else f"{levels[0]:g}-{levels[-1]:g}W-{len(levels)}-levels"
    )
    return "-".join(each for each in (stamp, power, "simulated" if options.simulated else "", secrets.token_hex(2)) if each)


def open_run(rig: Rig, options: RunOptions, *, progress: Progress) -> tuple[Deployment, Recorder]:
    """The rig, opened, and its record. Raises Refused with one clear message."""
    name = run_id(options)
    directory = state_dir()
    owner = Owner.me(name)
    simulated.check_faults(options.faults)
    undo(directory, tell=lambda outcome: progress(f"left by an earlier run: {outcome.detail}"))
    left = everybody.left_by_others() if not options.simulated else []
    for each in left:
        progress(each)
    folder = options.report_dir / name
    folder.mkdir(parents=True)
    journal = Journal(directory, owner)
    guard = Guard.start(directory, name, folder / "guard.log")
    simulation = None
    try:
        if options.simulated:
            simulation = simulated.open_rig(options, journal, progress)
            rig = simulated.promised(rig, simulation)
        deployment, recorder = _open(rig, options, name, folder, owner, journal, guard, simulation, progress)
        recorder.findings(tuple(Finding("left-by-others", "warn", "state directories", each) for each in left))
        return deployment, recorder
    except BaseException:
        if simulation is not None:
            simulation.close(journal)
        journal.close()
        guard.close()
        _remove_if_empty(folder)
        raise


def _open(
    rig: Rig,
    options: RunOptions,
    name: str,
    folder: Path,
    owner: Owner,
    journal: Journal,
    guard: Guard,
    simulation: simulated.Simulation | None,
    progress: Progress,
) -> tuple[Deployment, Recorder]:
    clock: Clock = simulation.rig.clock if simulation is not None else SystemClock()
    found = hardware.open_hardware(rig, options, simulation)
    controller = plane = None
    if rig.server is not None:
        controller, plane = _server(rig, folder, clock, simulation)
        _reachable(rig, controller, plane, found)
    locks = _lock(rig, found, owner, None if options.simulated else everybody.shared_dir())
    journal.covers(locks.names)
    run = Run(
        run_id=name,
        started=records.utc(clock.time()),
        simulated=options.simulated,
        time_scale=float(getattr(clock, "speed", 1.0)) if options.simulated else 1.0,
        power_levels_w=options.power_levels_w,
        rig=_rig_plain(rig),
    )
    recorder = Recorder(folder, run, clock)
    deployment = Deployment(
        rig=rig,
        options=options,
        clock=clock,
        folder=folder,
        recorder=recorder,
        progress=progress,
        journal=journal,
        guard=guard,
        locks=locks,
        hardware=found,
        controller=controller,
        plane=plane,
        simulation=simulation,
    )
    recorder.as_found(standing.read(deployment))
    deployment.take_fingerprint()
    recorder.write()
    return deployment, recorder


def _rig_plain(rig: Rig) -> dict[str, object]:
    """The promise for run.json: as typed, its path by name only, the environment of a command redacted."""
    from pytest_sglang.session.redaction import redact

    plain = records.plain({field: getattr(rig, field) for field in rig.__struct_fields__ if field not in ("path", "unavailable")})
    kept: dict[str, object] = redact({**plain, "path": rig.path.name, "unavailable": sorted(rig.unavailable)})
    return kept


def _server(rig: Rig, folder: Path, clock: Clock, simulation: simulated.Simulation | None) -> tuple[Controller, ControlPlane]:
    from pytest_sglang.server import control
    from pytest_sglang.server.http import ControlPlane

    if rig.server is None:
        raise Refused("the rig file promises no server")
    key = None
    if rig.server.api_key_env is not None:
        key = os.environ.get(rig.server.api_key_env)
        if key is None:
            raise Refused(
                f"{rig.path}: server.api_key_env = {rig.server.api_key_env!r}, but that variable is not set (export it, or remove the line)"
            )
    systemctl = simulation.rig.systemctl if simulation is not None else None
    controller = control.make(rig.server, clock=clock, run_dir=folder, systemctl=systemctl)
    return controller, ControlPlane(rig.server.url, key)


def _reachable(rig: Rig, controller: Controller, plane: ControlPlane, found: hardware.Hardware | None) -> None:
    """A promise without any source: attach only, nothing answers, and no hardware to look at."""
    if rig.server is None or controller.kind != "attach" or plane.health() is not None or found is not None:
        return
    state = controller.state()
    if state.active:
        return
    lines = [f"rig file: {rig.path}", *sources.survey(rig.server.url)]
    raise Refused(
        "\n".join(
            [
                f"nothing to judge: {rig.server.url} does not answer, and {rig.path.name} names no way to start the server and no GPUs.",
                *(f"  found: {line}" for line in lines),
                "  to try the simulated rig:    pytest acceptance/ --power=250 --rig=simulated",
            ]
        )
    )


def _lock(rig: Rig, found: hardware.Hardware | None, owner: Owner, shared: Path | None) -> RigLocks:
    names = [f"gpu {uuid}" for uuid in (found.uuids if found is not None else ())]
    if rig.server is not None:
        names.append(f"server {rig.server.url}")
    locks = RigLocks(state_dir(), names, shared)
    try:
        locks.acquire(owner)
    except LockHeld as held:
        raise Refused(str(held)) from None
    return locks


def _remove_if_empty(folder: Path) -> None:
    for path in (folder / "guard.log",):
        if path.exists() and path.stat().st_size == 0:
            path.unlink()
    try:
        folder.rmdir()
    except OSError:
        print(f"kept: {folder}", file=sys.stderr)
