"""Wait until a server is ready; notice at once when it died, and soon when it hangs.

One wait is one state machine (process, log, port, sign, proof, silence): over 400 lines, since cutting it would only pass its state around.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from pytest_sglang.record import units
from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding, Phase, Startup
from pytest_sglang.server import control, deaths, identity, phases, processes, watchdog
from pytest_sglang.server.control import Controller, ControlState
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.server.log import LogSource
from pytest_sglang.server.phases import Timeline
from pytest_sglang.server.proof import Proof, Prover, Sign
from pytest_sglang.server.start import (
    FailureKind,
    LogWatch,
    Progress,
    StartFailed,
    kind_of,
    outside,
    own_account,
    read_start,
    unreadable,
)
from pytest_sglang.server.task import Task
from pytest_sglang.server.watchdog import Watchdog, over, patience_s, stuck

if TYPE_CHECKING:
    import psutil

__all__ = ["Progress", "StartFailed", "read_start", "wait_ready"]

POLL_S = 0.05
"""Wall seconds between two looks at process and log: a death is noticed well within 1 s."""
PROBE_S = 0.1
"""Wall seconds between two connection attempts or status questions: the moment of readiness is right within 0.3 s."""
LAUNCH_S = 5.0
"""Wall seconds within which its owner shows the process of a start."""
CONFIRMATIONS = 3
"""Tries to get an exact completion after the first sign of readiness."""
FOUND_LATE_S = 60.0
"""Wall seconds for a server whose launch is long over every budget when it is looked at first: busy, it answers slowly."""
CLOCK_STEP_S = 1.0
"""A clock that is slewed stays below: 0.5 ms a second (adjtime(3)) over a cold start of half an hour."""
CLOCK_SET = "clock-set"
"""Kind of the finding of a start whose times mean nothing."""
LATE_HEALTH_S = 5.0
"""A /health that answers 200 after more than this has waited for a token: it looks for one once a second."""


class _Wait:
    """One wait for readiness."""

    def __init__(
        self,
        *,
        controller: Controller,
        plane: ControlPlane,
        log: LogSource,
        clock: Clock,
        launched_at: float,
        budget_s: float,
        silence_s: float,
        give_up_s: float,
        phases_s: Mapping[str, float],
        expected_s: float | None,
        expected_tokens: int,
        activity: Callable[[], object],
        watched: str,
        progress: Callable[[Progress], None],
    ) -> None:
        self.controller, self.plane, self.clock, self.launched_at = controller, plane, clock, launched_at
        self.budget_s, self.silence_s, self.give_up_s, self.expected_s = budget_s, silence_s, give_up_s, expected_s
        self.phases_s, self.expected_tokens, self.watched, self.progress = phases_s, expected_tokens, watched, progress
        self.prover = Prover(plane, clock, expected_tokens, timeout_s=max(60.0, min(silence_s, 600.0)))
        self.watchdog = Watchdog(clock, silence_s, activity)
        self.observed = controller.log_at_start is not None
        self.source, self.log = log, LogWatch(log, controller.log_at_start, launched_at)
        self.begun, self.begun_rig = time.monotonic(), clock.time()
        self.patience_s = FOUND_LATE_S if self.elapsed_s > give_up_s else watchdog.MIN_SILENCE_WALL_S
        self.process: psutil.Process | None = None
        self.kills: deaths.Kills | None = None
        # systemd counts anew when somebody starts the unit
        self.restarts = 0 if self.observed and controller.kind == "systemd" else controller.state().restarts
        self.port_open_at: float | None = None
        self.ready_at: float | None = None
        self.sign: Task[Sign] | None = None
        self.proof: Task[Proof] | None = None
        self.proofs: list[Proof] = []
        self.last_sign: Sign | None = None
        self.first_request_s: float | None = None
        self.held_up_s = 0.0
        self.crowded = ""
        self.seen_unready = False
        self.timeline: Timeline | None = None
        self._next = dict.fromkeys(("state", "log", "port", "tell", "proof"), 0.0)

    def run(self) -> Startup:
        while True:
            self._look_at_process()
            if self._due("log", 2 * POLL_S) and self.log.poll():
                self.watchdog.alive()
            done = self._look_at_port()
            if done is not None:
                return done
            self._look_for_silence()
            if self._due("tell", 0.25):
                self._tell()
            asleep = time.monotonic()
            time.sleep(POLL_S)
            if self.proof is not None and self.first_request_s is None:
                # a machine that wakes us late answers late too: that is no slowness of the first request
                self.held_up_s += time.monotonic() - asleep - POLL_S

    def _due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._next[what]:
            return False
        self._next[what] = now + every_s
        return True

    @property
    def elapsed_s(self) -> float:
        return max(0.0, self.clock.time() - self.launched_at)

    # --- the process -------------------------------------------------------------------------------------------------------

    def _look_at_process(self) -> None:
        if self.process is not None and processes.is_alive(self.process):
            return
        if not self._due("state", 0.1 if self.process is not None else 0.5):
            return
        state = self.controller.state()
        if state.pid is not None:
            if self.process is None:
                self._adopt(state.pid)
                if self.observed and (state.restarts or 0) > (self.restarts or 0):
                    raise self._died(state)  # the one that was started is gone already
                return
            raise self._died(state)  # its owner has started it again
        if state.active and self.process is None:
            return  # hidden from us, or its owner is still about to start it
        if self.process is not None:
            raise self._died(state)
        if state.result == "unreadable":
            return  # a service manager that does not answer says nothing of the server: silence and budget end the wait
        ended = state.result not in ("", "success")
        if self.controller.kind != "attach" and (ended or time.monotonic() - self.begun > LAUNCH_S):
            raise self._died(state)

    def _adopt(self, pid: int) -> None:
        import psutil

        try:
            self.process = psutil.Process(pid)
        except psutil.Error:
            return  # gone already: the next look tells
        self.watchdog.pids.add(pid)
        self.kills = deaths.kills_of(pid)

    def _died(self, state: ControlState) -> StartFailed:
        # its last words may still be on their way into the log
        for _ in range(4):
            self.log.poll()
            time.sleep(POLL_S)
        now = self._seen_by_owner()
        if state.exit_code is None and not now.active:
            state = now
        timeline = self._read(ended_at=self.clock.time())
        cause = deaths.cause(state, timeline, self._evidence())
        again = deaths.restarted(self.process.pid if self.process else None, self.restarts, now)
        if again is not None:
            cause = f"{cause}; {again}" if timeline.failure is not None else again
        return self._failed("died", cause, timeline, exit_code=state.exit_code)

    def _seen_by_owner(self) -> ControlState:
        """The state once its owner has noticed the death too: only then is the exit code known."""
        for _ in range(10):
            now = self.controller.state()
            if self.process is None or not now.active or now.pid != self.process.pid:
                break
            time.sleep(POLL_S)
        return now

    def _evidence(self) -> deaths.Evidence:
        # pids are given again: what the kernel said before this start was about somebody else
        begun = deaths.since_boot(time.time() - (time.monotonic() - self.begun))
        return deaths.Evidence(pids=frozenset(self.watchdog.pids), kills=self.kills, launched_since_boot_s=begun)

    def _failed(
        self, kind: FailureKind, cause: str, timeline: Timeline, *, exit_code: int | None = None, stacks: str = ""
    ) -> StartFailed:
        return StartFailed(
            kind,
            self._startup(timeline),
            cause=cause,
            phase=timeline.phase if timeline.phase else ("launch" if self.port_open_at is None else "warmup"),
            last_lines=timeline.last_lines,
            exit_code=exit_code,
            elapsed_s=self.elapsed_s,
            traceback=timeline.failure.traceback if timeline.failure else "",
            stacks=stacks,
        )

    # --- the port ----------------------------------------------------------------------------------------------------------

    def _look_at_port(self) -> Startup | None:
        if self.port_open_at is None:
            if self._due("port", PROBE_S):
                self._try_port()
            return None
        if self.proof is not None:
            return self._look_at_proof()
        if self.sign is None:
            if self._due("port", PROBE_S):
                self.sign = Task(self.prover.ask)
            return None
        sign = self.sign.result()
        if sign is None:
            return None
        self.sign, self.last_sign = None, sign
        if sign.status != 200:
            self.seen_unready = True
            self.ready_at = None
        elif self._due("proof", watchdog.LOOK_S):
            self.ready_at = self.ready_at or sign.asked_at
            if sign.path == "/health" and sign.seconds > LATE_HEALTH_S and self.first_request_s is None:
                self.first_request_s = sign.seconds  # it generated a token
            self.proof = Task(self.prover.prove)
        return None

    def _try_port(self) -> None:
        parts = urlsplit(self.plane.url)
        try:
            with socket.create_connection((parts.hostname or "127.0.0.1", control.port_of(self.plane.url)), timeout=0.5):
                pass
        except OSError:
            self.seen_unready = True
            return
        moment = self.clock.time()
        if self.process is None and self.controller.kind != "attach" and time.monotonic() - self.begun < LAUNCH_S:
            return  # whose port it is can be told only when the server's own process is known
        other = identity.stranger(
            self.plane.url, self.process.pid if self.process else None, container=self.controller.kind == "container"
        )
        if other is not None:
            self.log.poll()
            finding = Finding("impostor", "fail", self.plane.url, f"the port is served by {other}, which the start did not bring")
            timeline = self._read(extra=finding)
            raise self._failed("not ready", finding.detail, timeline)
        self.port_open_at = moment
        self.watchdog.alive()

    def _look_at_proof(self) -> Startup | None:
        proof = self.proof.result() if self.proof is not None else None
        if proof is None:
            return None
        self.proof = None
        if self.first_request_s is None:
            self.first_request_s = max(proof.completion.seconds - self.held_up_s, 0.5 * proof.completion.seconds) or None
            self.crowded = proof.others
        if not proof.why:
            return self._is_ready(proof)
        self.proofs.append(proof)
        self.ready_at = None  # the sign was premature: a later one counts
        if len(self.proofs) >= CONFIRMATIONS:
            self.log.poll()
            raise self._failed("not ready", f"it says that it is ready, but {proof.why}", self._read())
        return None

    def _is_ready(self, proof: Proof) -> Startup:
        self.log.poll()
        info, samples = self.plane.server_info(), self.plane.metrics()
        version = info.get("version") if isinstance(info, dict) else None
        if not self.observed and not self.seen_unready:
            return read_start(
                controller=self.controller, log=self.source, clock=self.clock, version=version, info=info, samples=samples
            )
        timeline = self._read(version=version)
        set_by_s = self._clock_set_by()
        if abs(set_by_s) > CLOCK_STEP_S:
            return self._untimed(timeline, set_by_s)
        account, disagree = own_account(info, samples, timeline)
        startup = self._startup(timeline, first_token_at=proof.ended_at)
        return msgspec.structs.replace(startup, timings=account, findings=(*startup.findings, *disagree))

    def _clock_set_by(self) -> float:
        """Seconds by which somebody has set the machine's clock since the wait began (a simulated rig's runs on its own)."""
        if self.clock.simulated:
            return 0.0
        return (self.clock.time() - self.begun_rig) - (time.monotonic() - self.begun)

    def _untimed(self, timeline: Timeline, set_by_s: float) -> Startup:
        """It is ready, and no moment of it can be told from another: its times are stamps of a clock that jumped."""
        detail = f"the machine's clock was set by {set_by_s:+.1f} s during the start: it was not timed"
        told = Finding(CLOCK_SET, "warn", "clock", detail, "let NTP settle (timedatectl), then run again")
        startup = self._startup(timeline)
        return msgspec.structs.replace(
            startup, port_open_s=None, phases=(), first_request_why=startup.first_request_why, findings=(*startup.findings, told)
        )

    # --- slow or stuck? ----------------------------------------------------------------------------------------------------

    def _look_for_silence(self) -> None:
        quiet_s = self.watchdog.silent_s(self.process)
        if quiet_s is not None:
            raise self._hangs(quiet_s)
        slow = None if self.watchdog.quiet else self._too_slow()
        if slow is not None and time.monotonic() - self.begun > self.patience_s:
            raise self._failed("not ready", f"{slow}; it moves, but too slowly", self._read())

    def _too_slow(self) -> str | None:
        """Over a budget, the whole's or the present phase's, by so much that waiting on tells nothing new."""
        if self.elapsed_s > self.give_up_s:
            return f"still not ready after {units.duration(self.elapsed_s)}, budget {units.duration(self.budget_s)}"
        return over(self.timeline.phases if self.timeline is not None else (), self.phases_s, self.elapsed_s)

    def _hangs(self, quiet_s: float) -> StartFailed:
        timeline = self._read()
        tree = processes.tree(self.process.pid if self.process else None)
        sign = self.last_sign if self.port_open_at is not None else None
        cause = stuck(quiet_s, self.watched, processes.stopped(tree), None if sign is None else (sign.path, sign.status))
        stacks = deaths.stacks(processes.titles(tree), stopped=processes.stopped_pids(tree))
        return self._failed("hang", cause, timeline, stacks=stacks)

    # --- what was seen -----------------------------------------------------------------------------------------------------

    def _read(self, *, version: str | None = None, ended_at: float | None = None, extra: Finding | None = None) -> Timeline:
        found = phases.timeline(
            self.log.lines(),
            launched_at=self.launched_at,
            ended_at=ended_at,
            version=version,
            ready_at=self.ready_at,
            port_open_at=self.port_open_at,
        )
        return msgspec.structs.replace(found, findings=(*found.findings, extra)) if extra is not None else found

    def _startup(self, timeline: Timeline, *, first_token_at: float | None = None) -> Startup:
        ready_s = None if self.ready_at is None or first_token_at is None else max(0.0, self.ready_at - self.launched_at)
        port_open_s = None if self.port_open_at is None else max(0.0, self.port_open_at - self.launched_at)
        first_token_s = None if first_token_at is None else max(0.0, first_token_at - self.launched_at)
        found = timeline.phases or outside(port_open_s, ready_s)
        if ready_s is not None:
            found = (*found, Phase("first_token", ready_s, first_token_s))
        return Startup(
            kind=kind_of(timeline, self.log.lines()),
            launched_at=self.launched_at,
            ready_s=ready_s,
            port_open_s=port_open_s,
            first_token_s=first_token_s,
            phases=found,
            pid=self.process.pid if self.process else None,
            argv=self.controller.argv(),
            versions=timeline.versions,
            autotune_runs=timeline.autotune_runs if self.log.lines() else None,
            capture_s=timeline.capture_s,
            findings=(*timeline.findings, *unreadable(self.source, self.log.lines())),
            observed=True,
            first_request_s=None if self.crowded else self.first_request_s,
            first_request_why=self.crowded,
            request_tokens=self.expected_tokens,
        )

    def _tell(self) -> None:
        self.timeline = phases.timeline(self.log.lines(), launched_at=self.launched_at)
        phase = "warmup" if self.port_open_at is not None else self.timeline.phase
        inside = self.timeline.inside if phase == self.timeline.phase else ""
        compiles = self.timeline.autotune_runs > 0
        self.progress(Progress(phase, inside, self.elapsed_s, self.expected_s, self.log.last_line, compiles))


def wait_ready(
    *,
    controller: Controller,
    plane: ControlPlane,
    log: LogSource,
    clock: Clock,
    launched_at: float,
    budget_s: float,
    silence_s: float,
    expected_tokens: int = 16,
    expected_s: float | None = None,
    give_up_s: float | None = None,
    phases_s: Mapping[str, float] | None = None,
    activity: Callable[[], object] = lambda: None,
    watched: str = "no CPU time",
    progress: Callable[[Progress], None] = lambda _: None,
) -> Startup:
    """Wait until the server is ready: its own tree alive and owning the port, health, an exact completion. Seconds in rig time.

    ``ready_s`` is the moment of the first sign, confirmed afterwards. Over ``budget_s``, or a phase over its ``phases_s``, it keeps
    waiting while there is progress, up to ``give_up_s`` (default: ``patience_s`` of the budget); ``silence_s`` without a log line, a
    change of ``activity()`` (named by ``watched``) or CPU time of the tree is a hang. A server that was ready before the call gives
    the start that it had (``read_start``). Raises StartFailed: "died", "hang", "not ready".
    """
    wait = _Wait(
        controller=controller,
        plane=plane,
        log=log,
        clock=clock,
        launched_at=launched_at,
        budget_s=budget_s,
        silence_s=silence_s,
        give_up_s=give_up_s if give_up_s is not None else patience_s(budget_s),
        phases_s=phases_s or {},
        expected_s=expected_s,
        expected_tokens=expected_tokens,
        activity=activity,
        watched=watched,
        progress=progress,
    )
    return wait.run()
