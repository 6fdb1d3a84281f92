"""One rig, opened: what is promised and the means to observe it, with everything that was changed put back on ``close()``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding, Startup
from pytest_sglang.rig.model import Rig
from pytest_sglang.session.errors import Inconclusive, NotChecked, NotPutBack
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.recorder import Recorder

if TYPE_CHECKING:
    from pytest_sglang.gpu.host import Xid
    from pytest_sglang.judge.throttling import Worked
    from pytest_sglang.server.control import Controller, ControlState
    from pytest_sglang.server.http import ControlPlane
    from pytest_sglang.server.identity import Identity
    from pytest_sglang.server.log import LogSource
    from pytest_sglang.session.activity import Activity
    from pytest_sglang.session.curve import PowerCurve
    from pytest_sglang.session.expected import Expected
    from pytest_sglang.session.guard import Guard
    from pytest_sglang.session.hardware import Hardware
    from pytest_sglang.session.journal import Entry, Journal
    from pytest_sglang.session.kernels import TritonCache
    from pytest_sglang.session.locks import RigLocks
    from pytest_sglang.session.power import GpuPower
    from pytest_sglang.session.scope import CheckScope
    from pytest_sglang.session.server import SglangServer
    from pytest_sglang.session.simulated import Simulation
    from pytest_sglang.session.topology import NvlinkTopology
    from pytest_sglang.session.underload import UnderLoad

Progress = Callable[[str | None], None]


class Deployment:
    """Made by ``opening.open_run``; the fixtures hand out its parts. A part that is not promised raises NotChecked when used."""

    def __init__(
        self,
        *,
        rig: Rig,
        options: RunOptions,
        clock: Clock,
        folder: Path,
        recorder: Recorder,
        progress: Progress,
        journal: Journal,
        guard: Guard,
        locks: RigLocks | None = None,
        hardware: Hardware | None = None,
        controller: Controller | None = None,
        plane: ControlPlane | None = None,
        simulation: Simulation | None = None,
    ) -> None:
        self.rig, self.options, self.clock, self.folder = rig, options, clock, folder
        self.recorder, self.progress, self.journal, self.guard, self.locks = recorder, progress, journal, guard, locks
        self.hardware, self.simulation = hardware, simulation
        self._controller, self._plane = controller, plane
        self.scope: CheckScope | None = None
        self.stopped_entry: Entry | None = None
        self.started_entry: Entry | None = None
        self.stop_asked: ControlState | None = None
        """The server as it was when a stop was asked for that has not come back: the run was interrupted in it, or it failed."""
        self.idle_levels: dict[str, int] = {}
        """Bytes in use on each card (by UUID) while no server ran, where this run has seen that."""
        self.as_left: dict[str, Any] = {}
        self.last_reasons: dict[str, dict[str, float]] | None = None
        """Shares of the last measured time by clocks event reason, by card."""
        self.worked: dict[float | None, tuple[Worked, ...]] = {}
        """What the serving cards did over the newest measurement at each power level."""
        self.loads: list[UnderLoad] = []
        """PCIe and NVLink in each measured load of this run."""
        self.kernel_messages: tuple[Xid, ...] | None = None
        """What the driver wrote into the kernel log, as it was last looked at in this run; None = not looked at, or unreadable."""
        self.lost_in: str | None = None
        """Id of the check in which a card fell off the bus; nothing is measured after it."""
        self.closed = False
        self._activity: Activity | None = None

    # --- parts -----------------------------------------------------------------------------------------------------------

    @property
    def controller(self) -> Controller:
        """How the server is looked at, started and stopped."""
        if self._controller is None:
            raise NotChecked("the rig file promises no server (add a [server] table)")
        return self._controller

    @property
    def plane(self) -> ControlPlane:
        """The server's HTTP control plane."""
        if self._plane is None:
            raise NotChecked("the rig file promises no server (add a [server] table)")
        return self._plane

    @property
    def log(self) -> LogSource:
        """The server's log."""
        return self.controller.log()

    @cached_property
    def expected(self) -> Expected:
        """How long this server's last starts took, by the records of earlier runs."""
        from pytest_sglang.session import expected

        return expected.read(self.options.report_dir, rig=self.rig.name, server=self.rig.server, simulated=self.options.simulated)

    @cached_property
    def server(self) -> SglangServer:
        """``sglang_server``."""
        from pytest_sglang.session.server import SglangServer

        if self.rig.server is None:
            raise NotChecked("the rig file promises no server (add a [server] table)")
        return SglangServer(self, self.rig.server)

    @cached_property
    def power(self) -> GpuPower:
        """``gpu_power``."""
        from pytest_sglang.session.power import GpuPower

        return GpuPower(self)

    @cached_property
    def curve(self) -> PowerCurve:
        """Speed and energy over the power levels of this run and of earlier ones."""
        from pytest_sglang.session.curve import PowerCurve

        return PowerCurve(self)

    @cached_property
    def topology(self) -> NvlinkTopology:
        """``nvlink_topology``."""
        from pytest_sglang.session.topology import NvlinkTopology

        return NvlinkTopology(self)

    @cached_property
    def kernels(self) -> TritonCache:
        """``triton_cache``."""
        from pytest_sglang.session.kernels import TritonCache

        return TritonCache(self)

    @property
    def current(self) -> CheckScope:
        """The check that is running."""
        if self.scope is None:
            raise Inconclusive("no check is running")
        return self.scope

    # --- the server's life -------------------------------------------------------------------------------------------------

    @property
    def stop_grace_s(self) -> float:
        """Seconds (wall) that a server gets between SIGTERM and SIGKILL: SGLang drains for 5 s looks and waits 15 s more."""
        return 60.0 if self.simulation is None else 5.0

    @property
    def gpu_free_s(self) -> float:
        """Seconds (wall) after a stop within which the cards must be free; a simulated driver frees at once."""
        from pytest_sglang.session import stopping

        return stopping.GPU_FREE_S if self.simulation is None else 5.0

    @property
    def is_this_machine(self) -> bool:
        """The promised server is this machine's, so that its processes and cards can be seen from here."""
        from urllib.parse import urlsplit

        from pytest_sglang.server.processes import is_local

        return self.rig.server is None or is_local(urlsplit(self.rig.server.url).hostname or "")

    def start_controller(self) -> None:
        """Start through the controller: a change of its own, for the guard to undo, where the server was found inactive or caches are aside."""
        from pytest_sglang.session import stopping

        found_inactive = self.stopped_entry is None and not self.controller.state().active
        if self.controller.kind != "command" and self.started_entry is None and (self.kernels.aside or found_inactive):
            self.started_entry = self.journal.record(
                "server", self.controller.subject, {"active": False}, {"active": True}, self.controller.description()
            )
        if not self.idle_levels and self.hardware is not None and self.is_this_machine and not self.controller.state().active:
            self.idle_levels = stopping.levels(self.hardware)
        self.progress(f"starting {self.controller.subject}")
        self._activity = self._watch()
        self.controller.start()

    def _watch(self) -> Activity:
        from pytest_sglang.session.activity import Activity

        return Activity(self)

    def server_is_back(self) -> None:
        """The owner's server serves again: nothing of it is left to undo, unless its caches are still set aside."""
        if self.stopped_entry is not None and not self.kernels.aside:
            self.journal.resolve(self.stopped_entry.id, "started again, ready")
            self.stopped_entry = None

    def wait_ready(self, *, launched_at: float, budget_s: float | None) -> Startup:
        """Wait for readiness with live progress. Raises StartFailed."""
        from pytest_sglang.server import ready
        from pytest_sglang.session import live

        expected, cold = self.expected.after(self.server.history), bool(self.kernels.aside)
        start, activity, self._activity = self.rig.start, self._activity or self._watch(), None
        budgets = [each for each in (start.cold_s, start.warm_s) if each] if start is not None else []
        budget = budget_s if budget_s is not None else max(budgets, default=1800.0)
        try:
            return ready.wait_ready(
                controller=self.controller,
                plane=self.plane,
                log=self.log,
                clock=self.clock,
                launched_at=launched_at,
                budget_s=budget,
                silence_s=start.silence_s if start is not None else 300.0,
                phases_s=start.phases_s if start is not None else None,
                activity=activity,
                watched=activity.watched,
                expected_s=expected.of(cold=cold),
                progress=lambda each: self.progress(live.text(each, expected.of(cold=cold or each.compiles))),
            )
        finally:
            self.progress(None)

    def wait_if_starting(self) -> None:
        """A server found in the middle of a start (after an upgrade, say) is waited for, whoever started it."""
        if self.plane.health() not in (200,):
            self.server.wait_ready()

    def read_last_start(self) -> Startup:
        """The start that the running server already had, from its log and its unit's time stamps."""
        from pytest_sglang.server import ready
        from pytest_sglang.session import starting

        info = self.server.info
        startup = ready.read_start(
            controller=self.controller,
            log=self.log,
            clock=self.clock,
            version=info.get("version"),
            info=info,
            samples=self.plane.metrics(),
        )
        return starting.resumed(starting.with_traces(startup, self.kernels), self.log)

    def identify(self) -> Identity:
        """Who listens, and whether it is the promised server."""
        from pytest_sglang.server import identity

        promise = self.server.promise
        return identity.identify(
            promise.url,
            promise,
            self.controller.state(),
            self.plane,
            self.clock,
            self.server.asked_at,
            log_text=self._log_of_newest_start,
            argv=self.controller.argv(),
        )

    def _log_of_newest_start(self) -> str:
        from pytest_sglang.server import log as logs
        from pytest_sglang.server import start

        lines = start.select(logs.split(self.log.read()), self.controller.state().started_at)
        return "\n".join(line.text for line in lines)

    def take_fingerprint(self) -> None:
        """Keep what this run is made on; again whenever another server process answers."""
        from pytest_sglang.session import fingerprint, layout

        self.recorder.environment(fingerprint.take(self))
        self.recorder.topology(layout.read(self))

    def require_this_machine(self) -> None:
        """Raise Inconclusive where the promised server is another machine's: the cards here say nothing about it."""
        if self.rig.server is not None and not self.is_this_machine:
            raise Inconclusive(f"{self.rig.server.url} is not served by this machine: its cards cannot be seen from here")

    def answers(self) -> bool:
        """Whether anything answers on the server's port."""
        return self.plane.health() is not None

    @property
    def cache_faulty(self) -> bool:
        """A start that should have been warm compiled instead: then that start is no evidence for the cold promise."""
        return any(each.kind == "cold" for each in self.server.history[1:])

    def environment_findings(self) -> list[Finding]:
        """Things that are off about the surroundings of this very run."""
        from pytest_sglang.session import fingerprint

        return fingerprint.own_environment(self)

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Put back what was changed, prove it by reading back, let go of the locks. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        try:
            self._put_back()
        finally:
            from pytest_sglang.session import layout, standing

            self._end_what_the_run_started()
            self.as_left = standing.read(self)
            self.recorder.topology(layout.read(self))
            self.recorder.stop_clock()
            self._keep_for_the_reader()
            for part in (self._plane, self.hardware):
                if part is not None:
                    part.close()
            if self.simulation is not None:
                self.simulation.close(self.journal)
            self.journal.close()
            self.guard.close()
            if self.locks is not None:
                self.locks.release()

    def _keep_for_the_reader(self) -> None:
        """Excerpts of the logs while these are there (a simulated rig takes its own with it), and what has changed since the last pass."""
        from pytest_sglang.session import excerpts, since

        excerpts.keep(self)
        since.note(self.recorder, self.options.report_dir)

    def _end_what_the_run_started(self) -> None:
        from pytest_sglang.server.control import ControlError
        from pytest_sglang.session import stopping

        if self._controller is None or not self._controller.run_owned:
            return
        try:
            self.recorder.findings(stopping.stop(self, 10.0))
        except ControlError as error:
            self.recorder.findings((Finding("survivor", "warn", self._controller.subject, str(error), "end it by hand"),))

    def _put_back(self) -> None:
        """Each step on its own: what fails is told and left to the guard, and the others are put back all the same."""
        from pytest_sglang.session import ended

        if "kernels" in self.__dict__:
            self._step("caches", self.kernels.put_back)
        if "power" in self.__dict__:
            self._step("power limits", self.power.restore)
        self._step("server", lambda: ended.as_found(self, self._controller))

    def _step(self, subject: str, put_back: Callable[[], None]) -> None:
        try:
            put_back()
        except Exception as error:
            self.not_put_back(subject, str(error) if isinstance(error, NotPutBack) else f"{type(error).__name__}: {error}")

    def not_put_back(self, subject: str, detail: str, remedy: str = "pytest-sglang undo") -> None:
        """A rig that is not as it was found: then the run is no pass."""
        self.recorder.findings((Finding("not-put-back", "warn", subject, detail, remedy),))
