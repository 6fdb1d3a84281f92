"""``pytest-sglang init``: look at the machine as it stands and write it down as a rig file. Changes nothing, overwrites nothing."""

from __future__ import annotations

import platform
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.gpu.readings import GpuLost, Missing, NoDriver
from pytest_sglang.record.clock import Clock, SystemClock
from pytest_sglang.rig.found import Found, FoundCache, FoundCard, FoundPair, FoundServer
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.rig.write import render
from pytest_sglang.session import simulated, sources
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.redaction import redact
from pytest_sglang.session.state import Owner, state_dir

if TYPE_CHECKING:
    from pytest_sglang.server.http import ControlPlane
    from pytest_sglang.session.simulated import Simulation

PORTS = (30000, 8001, 8000)
"""Where a server is looked for when no URL is given: SGLang's default, and what home rigs use."""


def write(options: RunOptions, output: Path, *, unit: str | None = None) -> str:
    """Write the rig file ``output`` and return its text. Raises Refused: it exists, or there is nothing to write down."""
    if output.exists():
        raise Refused(f"{output} exists and is not overwritten (write to another file: -o other.toml)")
    if not output.parent.is_dir():
        raise Refused(f"{output.parent} is not a directory (make it first: mkdir -p {output.parent})")
    text = render(observe(options, unit))
    # x: another process may have made the file since
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    return text


def observe(options: RunOptions, unit: str | None = None) -> Found:
    """The machine as it stands. Raises Refused where there is neither a driver nor a server."""
    if not options.simulated:
        return _observe(options, unit, None, SystemClock())
    journal = Journal(state_dir(), Owner.me("init"))
    simulation = simulated.open_rig(options, journal, lambda text: None)
    try:
        return _observe(options, simulation.rig.unit, simulation, simulation.rig.clock)
    finally:
        simulation.close(journal)
        journal.close()


def _observe(options: RunOptions, unit: str | None, simulation: Simulation | None, clock: Clock) -> Found:
    missing: dict[str, str] = {}
    cards, pairs, state = _cards(simulation, missing)
    url = simulation.rig.url if simulation is not None else options.url
    server, caches, more = _server(url, unit, simulation, clock, missing)
    if not cards and server is None:
        looked = ", ".join(f"http://127.0.0.1:{port}" for port in PORTS) if url is None else url
        raise Refused(
            "\n".join(
                [
                    "nothing to write down: no NVIDIA driver and no server answer here.",
                    f"  driver library: {missing.get('gpus', 'not found')}",
                    f"  server: looked at {looked} (give another one: --url http://HOST:PORT)",
                    "  to see what such a file looks like:    pytest-sglang init --rig=simulated -o example.toml",
                ]
            )
        )
    name = "simulated rig (SIMULATED)" if simulation is not None else platform.node() or "rig"
    return Found(
        name=name,
        cards=cards,
        pairs=pairs,
        server=server,
        caches=caches,
        unavailable=_unavailable(simulation),
        missing=missing,
        state=(*state, *more),
    )


def _cards(
    simulation: Simulation | None, missing: dict[str, str]
) -> tuple[tuple[FoundCard, ...], tuple[FoundPair, ...], list[str]]:
    from pytest_sglang.gpu import links

    try:
        nvml = Nvml.open(simulation.rig.nvml() if simulation is not None else None)
    except NoDriver as error:
        missing["gpus"] = str(error)
        return (), (), []
    with nvml:
        cards = nvml.cards()
        state = [f"driver {nvml.driver()}, {nvml.count()} GPU(s)"]
        state += [f"GPU {index} does not answer: {reason.reason}" for index, reason in nvml.unopened.items()]
        topology = links.read(nvml, cards)
        most = max(topology.pairs.values(), default=None)
        pairs = tuple(FoundPair(one=one, other=other, links=count, most=most) for (one, other), count in topology.pairs.items())
        if not pairs:
            missing["nvlink"] = next((each.reason for each in topology.unreadable.values()), "no link is up")
        return tuple(_card(card) for card in cards), pairs, state


def _card(card: Any) -> FoundCard:
    found = card.found()
    state = card.performance_state()
    return FoundCard(
        index=found.index,
        uuid=found.uuid,
        pci=found.pci or None,
        name=found.name,
        persistence=found.persistence,
        requested_w=found.requested_w,
        enforced_w=found.enforced_w,
        default_w=found.default_w,
        min_w=found.min_w,
        max_w=found.max_w,
        pcie_gen=found.pcie_gen,
        pcie_max_gen=found.pcie_max_gen,
        pcie_width=found.pcie_width,
        pcie_max_width=found.pcie_max_width,
        loaded=not isinstance(state, Missing) and state <= 2,
    )


def _unavailable(simulation: Simulation | None) -> dict[str, str]:
    """Readings that this host cannot give to this user, for the owner to waive."""
    from pytest_sglang.gpu import host

    if simulation is not None:
        return {}
    xids = host.xids_since(0.0)
    return {"xid": xids.reason} if isinstance(xids, Missing) else {}


def _server(
    url: str | None, unit: str | None, simulation: Simulation | None, clock: Clock, missing: dict[str, str]
) -> tuple[FoundServer | None, tuple[FoundCache, ...], list[str]]:
    from pytest_sglang.server.http import ControlPlane

    for candidate in [url] if url is not None else [f"http://127.0.0.1:{port}" for port in PORTS]:
        with ControlPlane(candidate) as plane:
            if plane.health() is None:
                continue
            return _described(candidate, plane, unit, simulation, clock, missing)
    missing["server"] = sources.server(url or sources.DEFAULT_URL)
    return None, (), []


def _described(
    url: str, plane: ControlPlane, unit: str | None, simulation: Simulation | None, clock: Clock, missing: dict[str, str]
) -> tuple[FoundServer, tuple[FoundCache, ...], list[str]]:
    from pytest_sglang.server import control, identity, ready
    from pytest_sglang.server.processes import listener

    listening = listener(control.port_of(url))
    pid = listening[0].pid if listening else None
    unit = unit or (unit_of(pid) if pid is not None else None)
    if unit is None:
        missing["server.systemd"] = (
            "the process belongs to no systemd service" if pid is not None else "no process of this machine listens there"
        )
    with tempfile.TemporaryDirectory(prefix="pytest-sglang-") as scratch:
        promised = ServerPromise(url=url, systemd=unit)
        systemctl = simulation.rig.systemctl if simulation is not None else None
        controller = control.make(promised, clock=clock, run_dir=Path(scratch), systemctl=systemctl)
        found = identity.identify(url, promised, controller.state(), plane, clock)
        log = _log_path(controller)
        if log is None:
            missing["server.log"] = (
                "the unit writes to the journal" if unit else "where the server writes its log cannot be told from here"
            )
        start = ready.read_start(controller=controller, log=controller.log(), clock=clock, version=found.version)
        caches = _caches(controller, found.version, pid)
        gpus, alone = _gpus(simulation, pid)
        server = FoundServer(
            url=url,
            model=found.model,
            served_name=found.served_name,
            tp=found.tp,
            gpus=gpus,
            exclusive=alone,
            torch_compile=found.torch_compile,
            systemd=unit,
            log=log,
            api_key_needed=any("API key" in each for each in found.unreadable),
            version=found.version,
            argv=tuple(redact(list(found.argv or controller.argv()))),
            ready_s=start.ready_s,
        )
    state = [] if start.ready_s is None else [f"the present start was a {start.kind} one"]
    return server, caches, state


def unit_of(pid: int) -> str | None:
    """The systemd service that process ``pid`` belongs to, by its control group; None = none."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return None
    names = re.findall(r"/([^/\n]+\.service)(?=/|$)", groups, re.MULTILINE)
    owned = [name for name in names if not name.startswith(("user@", "session-"))]
    return owned[-1] if owned else None


def _log_path(controller: Any) -> str | None:
    path = getattr(controller.log(), "path", None)
    return str(path) if path is not None else None


def _gpus(simulation: Simulation | None, pid: int | None) -> tuple[tuple[int, ...] | None, bool | None]:
    """NVML indices of the cards on which the server works, and whether nobody else computes there; None = cannot be told."""
    from pytest_sglang.gpu import processes
    from pytest_sglang.server.processes import tree

    if pid is None:
        return None, None
    pids = {each.pid for each in tree(pid)}
    try:
        with Nvml.open(simulation.rig.nvml() if simulation is not None else None) as nvml:
            cards = processes.gpus_of(nvml.cards(), pids)
            if isinstance(cards, Missing):
                return None, None
            strangers = [each for each in processes.foreign(cards, pids) if each.kind == "compute"]
    except (NoDriver, GpuLost):
        return None, None
    return tuple(card.index for card in cards), not strangers


def _caches(controller: Any, version: str | None, pid: int | None) -> tuple[FoundCache, ...]:
    from pytest_sglang.cache import snapshot, survive
    from pytest_sglang.session.cacheview import places_of

    environment = dict(controller.environment())
    places = places_of(environment, version, pid)
    notes = {str(finding.subject): finding.detail for finding in survive.findings(places, environment)}
    out = []
    for each in snapshot.take(places).places:
        if each.exists:
            path = str(each.place.path)
            out.append(FoundCache(name=each.place.kind, path=path, files=each.files, bytes=each.bytes, note=notes.get(path, "")))
    return tuple(out)
