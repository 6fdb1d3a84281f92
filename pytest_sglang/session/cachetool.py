"""Opening a server's caches, or named directories, for the ``cache`` tool: what a run would see of them, without a run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_sglang.cache.integrity import Running
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine
from pytest_sglang.record.clock import Clock, SystemClock
from pytest_sglang.session import caches, hardware, promise, simulated
from pytest_sglang.session.caches import Look
from pytest_sglang.session.cacheview import CacheView, Source
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.state import Owner, state_dir

if TYPE_CHECKING:
    from pytest_sglang.server.control import ControlState


class Opened(NamedTuple):
    """Caches to be looked at or moved. ``what`` names them, ``locks`` what a change of them must hold."""

    what: str
    places: tuple[CachePlace, ...]
    machine: Machine
    locks: tuple[str, ...]
    view: CacheView | None
    running: Running = Running()
    simulated: bool = False
    running_as: str | None = None
    """How the server that uses them is stopped; None = it does not run, or is not known."""
    unseen: str | None = None
    """Why it cannot be told whether the server runs, or where its caches are; None = it can."""

    def look(self) -> Look:
        """Everything about them. Of named directories nothing can be said on users, units and running versions."""
        if self.view is not None:
            return self.view.look()
        from pytest_sglang.cache import survive

        doubts = survive.findings(self.places, dict(os.environ), machine=self.machine)
        # of directories alone nobody knows the variable
        doubts = [each for each in doubts if not each.remedy.startswith("Environment=")]
        return caches.look(self.places, self.machine, self.running, doubts=doubts)


@contextmanager
def named(folders: Sequence[Path]) -> Iterator[Opened]:
    """Directories named by hand. Raises Refused for one that is not there."""
    for folder in folders:
        if not folder.is_dir():
            raise Refused(
                f"{folder}: no such directory (name cache directories, or none: then the caches of the rig's server are meant)"
            )
    places = caches.named_places(folders)
    what = ", ".join(str(folder) for folder in folders)
    yield Opened(what, places, Machine.here(), (), None)


@contextmanager
def of_server(options: RunOptions) -> Iterator[Opened]:
    """The caches of the rig file's server, running or not. Raises Refused where no server is promised."""
    rig = promise.resolve(options)
    if rig.server is None:
        raise Refused(
            f"{rig.path}: no [server] table, so there is no server whose caches could be found (name directories instead)"
        )
    with ExitStack() as stack:
        clock: Clock = SystemClock()
        simulation = None
        if options.simulated:
            journal = Journal(state_dir(), Owner.me(f"cache-{os.getpid()}"))
            stack.callback(journal.close)
            simulation = simulated.open_rig(options, journal, lambda text: None)
            stack.callback(simulation.close, journal)
            rig, clock = simulated.promised(rig, simulation), simulation.rig.clock
        if rig.server is None:
            raise Refused(f"{rig.path}: no [server] table")
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pytest-sglang-")))
        from pytest_sglang.server import control
        from pytest_sglang.server.http import ControlPlane

        controller = control.make(
            rig.server, clock=clock, run_dir=scratch, systemctl=simulation.rig.systemctl if simulation else None
        )
        key = os.environ.get(rig.server.api_key_env) if rig.server.api_key_env else None
        plane = stack.enter_context(ControlPlane(rig.server.url, key))
        try:
            cards = hardware.open_hardware(rig, options, simulation)
        except Refused:
            cards = None  # a machine without a driver has caches all the same
        if cards is not None:
            stack.callback(cards.close)

        def version() -> str | None:
            info = plane.server_info()
            found = info.get("version") if isinstance(info, dict) else None
            return found if isinstance(found, str) else None

        view = CacheView(
            Source(lambda: controller, version, lambda: cards.serving if cards is not None else (), rig.start, simulation)
        )
        state = controller.state()
        what = f"{controller.subject} ({f'running, pid {state.pid}' if state.active else 'not running'})"
        yield Opened(
            what,
            view.places,
            view.machine,
            (f"{'simulated ' if simulation is not None else ''}server {rig.server.url}",),
            view,
            view.running(),
            simulated=simulation is not None,
            running_as=_how_to_stop(controller.kind, controller.subject) if state.active else None,
            unseen=_unseen(controller.kind, state),
        )


def _unseen(kind: str, state: ControlState) -> str | None:
    """Why caches must not be renamed or removed by what is known of the server; None = nothing is against it."""
    if state.active:
        return None
    if state.result == "unreadable":
        return f"whether the server runs cannot be told: {state.detail}"
    if kind == "container":
        # the same paths on this machine are somebody else's
        return "the container does not run, and its paths are not this machine's: name the directories (of its volumes)"
    return None


def _how_to_stop(kind: str, subject: str) -> str:
    return {"systemd": f"systemctl stop {subject}", "container": f"docker stop {subject}"}.get(kind, f"stop {subject}")
