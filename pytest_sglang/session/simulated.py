"""The simulated rig as a run uses it: made or found, started, handed over as real ones would be, removed at the end. Only here is the simulator known."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.rig.model import Rig
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.options import RunOptions

if TYPE_CHECKING:
    from pytest_sglang.session.journal import Entry, Journal

SPEED = 200.0
"""How much faster than the wall's the rig's clock runs inside long start-up phases: 22 minutes pass in 7 s."""
START_WAIT_S = 60.0
"""Wall seconds within which the simulated server must serve: a warm start takes about 4."""


class Simulation:
    """One simulated rig, owned by the run unless it lives in a directory that the user named."""

    def __init__(self, rig: Any, *, owned: bool) -> None:
        self.rig, self.owned = rig, owned
        self.entry: Entry | None = None

    @property
    def nvml_context(self) -> dict[str, str]:
        """How another process (guard, sampler) opens the same stand-in."""
        return {"nvml": "pytest_sglang.session.simulated:open_nvml", "argument": str(self.rig.directory)}

    def kernel_log(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit code and output of journalctl or dmesg on the simulated rig."""
        code, output = self.rig.kernel_log(list(command))
        return int(code), str(output)

    def close(self, journal: Journal) -> None:
        """End every process of it and remove its directory, if the run made it."""
        if self.owned:
            self.rig.destroy()
            if self.entry is not None:
                journal.resolve(self.entry.id, "removed")


def open_nvml(directory: str) -> Any:
    """The NVML stand-in of the simulated rig in ``directory``, an object in place of the module ``pynvml``."""
    from pytest_sglang.simulator.rig import SimulatedRig

    return SimulatedRig.open(Path(directory)).nvml()


def destroy(directory: str) -> None:
    """Undo of a simulated rig that a dead run left behind."""
    from pytest_sglang.simulator.rig import SimulatedRig

    path = Path(directory)
    if path.exists():
        try:
            SimulatedRig.open(path).destroy()
        finally:
            shutil.rmtree(path, ignore_errors=True)


def known_faults() -> dict[str, str]:
    """Fault names of the simulated rig with their one-line summaries."""
    from pytest_sglang.simulator.faults import FAULTS

    return {name: fault.summary for name, fault in FAULTS.items()}


def check_faults(faults: tuple[str, ...]) -> None:
    """Raise Refused for an unknown fault, naming the nearest known one."""
    import difflib

    known = known_faults()
    for name in faults:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Refused(f"--sglang-fault={name}: no such fault of the simulated rig{hint} (known: {', '.join(known)})")


def open_rig(options: RunOptions, journal: Journal, progress: Callable[[str | None], None]) -> Simulation:
    """Make the simulated rig (or open the one in --sglang-simulated-dir) and wait until its server serves."""
    from pytest_sglang.simulator.rig import SimulatedRig

    check_faults(options.faults)
    progress("SIMULATED rig: starting its server")
    if options.simulated_dir is not None and _made(options.simulated_dir):
        simulation = Simulation(SimulatedRig.open(options.simulated_dir), owned=False)
    else:
        directory = options.simulated_dir or Path(tempfile.mkdtemp(prefix="pytest-sglang-simulated-"))
        owned = options.simulated_dir is None
        entry = None
        if owned:
            context = {"call": "pytest_sglang.session.simulated:destroy", "argument": str(directory)}
            entry = journal.record("directory", str(directory), None, str(directory), context)
        simulation = Simulation(_create(directory, options), owned=owned)
        simulation.entry = entry
        simulation.rig.start()
    _wait(simulation)
    progress(None)
    return simulation


def _made(directory: Path) -> bool:
    from pytest_sglang.simulator import config

    return (directory / config.NAME).exists()


def _create(directory: Path, options: RunOptions) -> Any:
    """A rig whose owner has set the first power level; one that its cards cannot take is refused later, naming each card's range."""
    from pytest_sglang.simulator.rig import SimulatedRig

    power = options.power_levels_w[0] if options.power_levels_w else None
    try:
        return SimulatedRig.create(directory, power_w=power, faults=options.faults, speed=SPEED)
    except ValueError:
        return SimulatedRig.create(directory, faults=options.faults, speed=SPEED)


def _wait(simulation: Simulation) -> None:
    deadline = time.monotonic() + START_WAIT_S
    while not simulation.rig.serving():
        if time.monotonic() > deadline:
            raise Refused(f"the simulated rig did not serve within {START_WAIT_S:.0f} s; its log: {simulation.rig.log}")
        time.sleep(0.05)


def promised(rig: Rig, simulation: Simulation) -> Rig:
    """The promise with the addresses of this very simulated rig: its port and its log."""
    if rig.server is None:
        return rig
    server = msgspec.structs.replace(rig.server, url=simulation.rig.url, log=str(simulation.rig.log), systemd=simulation.rig.unit)
    return msgspec.structs.replace(rig, server=server)


def serve_alone(port: int, faults: tuple[str, ...]) -> int:
    """``pytest-sglang simulate``: the simulated server in the foreground until it is interrupted; everything removed afterwards."""
    from pytest_sglang.simulator import cli

    return cli.simulate(port, faults)


def begin_start(options: RunOptions, journal: Journal) -> Simulation:
    """A simulated rig whose server has just been started, for following the start; removed by ``Simulation.close``."""
    from pytest_sglang.simulator.rig import SimulatedRig

    check_faults(options.faults)
    directory = Path(tempfile.mkdtemp(prefix="pytest-sglang-simulated-"))
    context = {"call": "pytest_sglang.session.simulated:destroy", "argument": str(directory)}
    entry = journal.record("directory", str(directory), None, str(directory), context)
    simulation = Simulation(SimulatedRig.create(directory, faults=options.faults, faults_at_once=True, speed=SPEED), owned=True)
    simulation.entry = entry
    simulation.rig.start()
    return simulation


@contextmanager
def at_work(options: RunOptions, hardware: str | None = None) -> Iterator[Simulation]:
    """A simulated rig without a server whose serving cards work as if this process were decoding on them; removed at the end.

    Raises Refused for a fault or hardware that there is not, or a fault that this hardware cannot have.
    """
    from pytest_sglang.simulator.rig import SimulatedRig

    check_faults(options.faults)
    with tempfile.TemporaryDirectory(prefix="pytest-sglang-simulated-") as folder:
        try:
            rig = SimulatedRig.create(Path(folder, "rig"), hardware=hardware or "six-3090", faults=options.faults, speed=SPEED)
        except ValueError as error:
            raise Refused(str(error)) from None
        rig.pretend(os.getpid())
        yield Simulation(rig, owned=False)
