"""``sglang_server``: one SGLang as a test sees it. Works without pytest; every change goes through journal and controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.answers import Answers
from pytest_sglang.record.values import Finding, Startup, Throughput
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server.control import ControlError
from pytest_sglang.session import answering, first, judging, starting, stopping
from pytest_sglang.session.answering import Answering
from pytest_sglang.session.errors import Inconclusive, NotChecked, ServerDied
from pytest_sglang.session.serving import Serving
from pytest_sglang.session.watched import Watched

if TYPE_CHECKING:
    from pytest_sglang.server.control import ControlState
    from pytest_sglang.server.identity import Identity
    from pytest_sglang.server.log import LogSource
    from pytest_sglang.session.deployment import Deployment

READY_TOKENS = 16
"""Length of the exact completion that proves readiness."""


class SglangServer:
    """The server of a deployment: what it says of itself, its starts, and measurements on it."""

    def __init__(self, deployment: Deployment, promise: ServerPromise) -> None:
        self._deployment = deployment
        self.promise = promise
        self.lost_by: str | None = None
        """Id of the check in which the server was stopped and did not come back; later checks are inconclusive because of it."""
        self.history: list[Startup] = []
        """Starts that this run made, oldest first."""
        self.launches: list[tuple[float, str, str]] = []
        """Every start that this run asked for, failed ones too: rig time, what for, the check it was made in ("" outside one)."""
        self._last_start: Startup | None = None
        self._identity: Identity | None = None
        self._throughputs: dict[tuple[float | None, int, int], Throughput] = {}
        self._failed_start: Exception | None = None
        self.starting = False
        """This run's newest start of it has not become ready: it is under way, was interrupted, or failed."""
        self.asked_at: float | None = None
        """Rig time at which this run asked for the newest start; what answers must have been started after that."""
        self.answering = Answering(deployment)
        self._before_stop: Serving | None = None
        """The server just before this run stopped it."""

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        return self.promise.url

    @property
    def model(self) -> str:
        """Name to put into requests: the served name, else the first that /v1/models answers, else the promised model."""
        models = self._deployment.plane.models()
        listed = models[0] if isinstance(models, list) and models else None
        return self.promise.served_name or listed or self.promise.model or "default"

    @property
    def info(self) -> dict[str, Any]:
        """``/server_info`` with secrets redacted; empty where it cannot be read. One round trip to the scheduler."""
        found = self._deployment.plane.server_info()
        return found if isinstance(found, dict) else {}

    @property
    def log(self) -> LogSource:
        """Where its log comes from."""
        return self._deployment.log

    @property
    def last_start(self) -> Startup:
        """The newest start: made by this run, or the one that the running server already had, from its log and unit."""
        if self._last_start is None:
            self._last_start = self._deployment.read_last_start()
        return self._last_start

    @property
    def cold_capture_s(self) -> float | None:
        """Seconds that the newest known cold start captured graphs, in this run or an earlier one; None = not known."""
        from pytest_sglang.session import past

        seen = next((each.capture_s for each in reversed(self.history) if each.kind == "cold" and each.capture_s), None)
        return seen if seen is not None else past.recall(self._deployment).cold_capture_s

    def identity(self, *, fresh: bool = False) -> Identity:
        """Who answers on the URL, against what is promised."""
        self.ensure_running()
        if self._identity is None or fresh:
            self._identity = self._deployment.identify()
            self._deployment.take_fingerprint()
        return self._identity

    def ensure_running(self) -> None:
        """Start a server that belongs to the run (``command = [...]``) if it is not up yet. An owner's server is never started here."""
        deployment = self._deployment
        if self._failed_start is not None:
            raise self._failed_start
        if deployment.controller.kind != "command" or deployment.controller.state().active or self.lost_by is not None:
            return
        try:
            self._start("first start")
        except Exception as error:
            self._failed_start = error
            raise

    def start(self) -> Startup:
        """Start the server and wait until it is ready. Raises StartFailed (died, hang), NotChecked where restarts are not allowed."""
        self._may_restart()
        return self._made(self._start("start"))

    def stop(self) -> None:
        """Stop the server through its controller; what stands still afterwards is started again at the end of the run."""
        self._may_restart()
        deployment = self._deployment
        self.answering.before_stop()
        deployment.kernels.remember()  # it takes a while, in which somebody's request may come: not behind the look for those
        if not deployment.controller.run_owned:
            stopping.until_quiet(deployment)
        if not deployment.controller.run_owned and deployment.stopped_entry is None and deployment.started_entry is None:
            # the pid tells, when the run has died, a server that is still to stop from one that was started again
            before = {"active": True, "pid": deployment.controller.state().pid}
            deployment.stopped_entry = deployment.journal.record(
                "server", deployment.controller.subject, before, {"active": False}, deployment.controller.description()
            )
        self._before_stop = Serving.of(deployment.controller.state())
        try:
            found = stopping.stop(deployment)
        except ControlError:
            self.lost_by = self._check_id("stop")
            raise
        self._tell_stop(found)
        self._forget()

    def _tell_stop(self, found: tuple[Finding, ...]) -> None:
        """What was wrong with a stop belongs to the check that made it; what could not be proved of it is listed as not checked."""
        scope, waived = self._deployment.scope, "processes" in self._deployment.rig.unavailable
        judged = [each for each in found if each.severity == "fail" or (each.kind == stopping.MEMORY_UNREADABLE and not waived)]
        self._deployment.recorder.findings(tuple(each for each in found if scope is None or each not in judged))
        if scope is not None:
            scope.stops += judged
            unproved = (stopping.MEMORY_UNPROVED, stopping.MEMORY_UNREADABLE)
            for each in found:
                if each.kind in unproved and each not in judged:
                    scope.left_out["gpu-memory-after-stop"] = each.detail

    def restart(self) -> Startup:
        """Stop, start, wait until ready; the caches' new entries are in ``Startup.cache_diff``."""
        self._may_restart()
        if self._known_state():
            self.stop()
        return self._made(self._start("restart"))

    def restart_or_last(self, kind: str) -> Startup:
        """A start of this kind to judge: made now where that is allowed, else the one that the running server already had.

        ``kind`` "warm" or "cold". Raises NotChecked when neither is to be had.
        """
        options = self._deployment.options
        self.identity()
        cold_seen = next((each for each in reversed(self.history) if each.kind == "cold" and each.observed), None)
        if kind == "cold" and cold_seen is not None and not self._deployment.cache_faulty:
            return self._judged(cold_seen, "cold start", "cold")
        allowed = options.may_go_cold if kind == "cold" else options.may_restart
        if allowed and self._deployment.controller.kind != "attach":
            return self._restart_cold() if kind == "cold" else self._judged(self._restart_warm(), "warm restart", "warm")
        last = self.last_start
        if kind == "warm" and last.resumes is not None:
            why = f"the running server's start resumed one that was interrupted in {last.resumes}, with its caches partly there"
            raise NotChecked(f"{why}: neither a cold nor a warm one; a warm restart is made with --sglang-allow-restart only")
        if last.kind == kind or (kind == "warm" and last.kind == "partial"):
            return self._judged(last, f"{kind} start, as found", kind)
        flag = "--sglang-allow-cold" if kind == "cold" else "--sglang-allow-restart"
        had = {"unknown": "how the running server started cannot be told from its log"}.get(
            last.kind, f"the running server's start was a {last.kind} one"
        )
        if self._deployment.controller.kind == "attach":
            raise NotChecked(f"{had}, and none can be made: {self._deployment.controller.may_control()}")
        raise NotChecked(f"{had}; a {kind} start is made with {flag} only")

    def _restart_warm(self) -> Startup:
        """A restart on caches that a whole start has filled."""
        startup = self.restart()
        # one that resumed an interrupted start had to compile: the next one tells whether it lasts
        return startup if startup.resumes is None else self.restart()

    def _restart_cold(self) -> Startup:
        with self._deployment.kernels.set_aside():
            startup = self._judged(self.restart(), "cold start", "cold")
        return startup

    def _judged(self, startup: Startup, label: str, kind: str) -> Startup:
        scope = self._deployment.scope
        if scope is not None and startup not in scope.startups:
            scope.startups.append(startup)
        start = self._deployment.rig.start
        budget = None if start is None else start.cold_s if kind == "cold" else start.warm_s
        self._deployment.recorder.startup(label, startup, budget)
        return startup

    def wait_ready(self, within: float | None = None) -> Startup:
        """Wait until the server is ready, whoever started it; ``within`` is its budget in seconds of rig time."""
        deployment = self._deployment
        state = deployment.controller.state()
        startup = deployment.wait_ready(launched_at=state.started_at or deployment.clock.time(), budget_s=within)
        self._last_start = startup
        return startup

    def _start(self, label: str, *, compare: bool = True) -> Startup:
        deployment = self._deployment
        watched = Watched(deployment)
        launched = deployment.clock.time()
        self.launches.append((launched, label, self._check_id("")))
        try:
            self.starting = True
            deployment.start_controller()
            self.asked_at = launched
            startup = deployment.wait_ready(launched_at=launched, budget_s=None)
            self.starting = False
            self._is_another_process()
        except Exception:
            self.lost_by = self._check_id(label)
            raise
        self._is_known(startup)
        if compare:
            startup = first.measured(startup, deployment)
        startup = starting.resumed(watched.ended(startup), deployment.log)
        self.lost_by = None
        self.history.append(startup)
        self._last_start = startup
        deployment.server_is_back()
        self.answering.started(label)
        return startup

    def _check_id(self, otherwise: str) -> str:
        scope = self._deployment.scope
        return scope.spec.id if scope is not None else otherwise

    def _is_another_process(self) -> None:
        """Raise ControlError where the process that ran before the stop is the one that runs now: then nothing was started."""
        before, now = self._before_stop, Serving.of(self._deployment.controller.state())
        if before is None or before.pid is None or now.is_other(before):
            return
        raise ControlError(
            f"{self._deployment.controller.subject} was stopped and started, but pid {now.pid} is the process that ran before: "
            "the start brought nothing, and its time would be no start's"
        )

    def _is_known(self, startup: Startup) -> None:
        """Raise Inconclusive where the owner never told the process that it started: whoever answers may be another one."""
        controller = self._deployment.controller
        if startup.pid is None and controller.kind != "attach" and (state := controller.state()).result == "unreadable":
            raise Inconclusive(f"a server is ready, but whether it is the one that was started cannot be read: {state.detail}")

    def _made(self, startup: Startup) -> Startup:
        """A start that a test asked for is one that its limits are about; one that only puts things back is not."""
        if self._deployment.scope is not None:
            self._deployment.scope.startups.append(startup)
        return startup

    def _forget(self) -> None:
        self._identity = None
        self._last_start = None

    def _may_restart(self) -> None:
        deployment = self._deployment
        if not deployment.options.may_restart and not deployment.controller.run_owned:
            raise NotChecked("the server is not restarted without --sglang-allow-restart")
        why = deployment.controller.may_control()
        if why is not None:
            raise NotChecked(f"the server cannot be restarted: {why}")

    def judge_identity(self) -> Judgement:
        """Pass where the listener is the promised process, and model, served name, tensor parallel size are the promised ones."""
        return judging.identity(self.identity(fresh=True), self.promise, self._deployment)

    def judge_ready(self) -> Judgement:
        """An exact generation: as many tokens as asked, finish reason ``length``."""
        self.identity()
        self._deployment.wait_if_starting()
        return judging.exact(self._deployment.plane.complete(READY_TOKENS, timeout_s=60.0), READY_TOKENS, held=self._stopped)

    def _stopped(self) -> list[str]:
        """Processes of the server that somebody stopped (SIGSTOP)."""
        from pytest_sglang.server import processes

        return processes.stopped(processes.tree(self._deployment.controller.state().pid))

    def judge_findings(self, more: tuple[Finding, ...] = ()) -> Judgement:
        """No finding of severity ``fail`` in the log of the newest start, the unit, the server's arguments and ``more``."""
        deployment = self._deployment
        found = [
            *deployment.controller.findings(deployment.rig.start),
            *self.last_start.findings,
            *self.identity().findings,
            *deployment.environment_findings(),
            *more,
        ]
        # what could not be read contradicts nothing, and is no pass either
        if deployment.scope is not None:
            parts = {"log-unreadable": "server-log", "unit-unreadable": "server-unit"}
            deployment.scope.left_out |= {parts[each.kind]: each.detail for each in found if each.kind in parts}
        return judging.findings(tuple(dict.fromkeys(found)))

    def answers(self) -> Answers:
        """Ask the fixed prompts, and those of the rig file, now: greedy tokens with their log-probabilities. Raises Inconclusive."""
        self.identity()
        before = Serving.of(self._deployment.controller.state())
        found = self.answering.ask()
        self._same_process(before)
        if found.why:
            raise Inconclusive(f"no answers: {found.why}")
        return found

    def judge_answers(self) -> list[Judgement]:
        """Answers are sound, the same in every start of this run but for near ties, and hold what the rig file expects."""
        self.identity()
        before = Serving.of(self._deployment.controller.state())
        judged = self.answering.judge()
        self._same_process(before)
        return judged

    def last_throughput(self, power_w: float | None) -> Throughput | None:
        """The newest measurement at this power level in this run, so that a second check need not repeat it."""
        workload = self._deployment.rig.workload
        rows = [row.streams for row in self._deployment.rig.rows(power_w) if row.max_j_per_token is not None]
        streams = rows[0] if rows else workload.streams
        found = self._throughputs.get((power_w, streams, workload.output_tokens))
        scope = self._deployment.scope
        if found is not None and scope is not None:
            scope.throughputs.append(found)
        return found

    def measure(self, streams: int | None = None, output_tokens: int | None = None, rounds: int | None = None) -> Throughput:
        """Measure decode throughput: rounds until the promised rate of the current check is decided, or rounds are used up.

        Raises Inconclusive where the server is not the promised one or a card is not at the check's power level.
        """
        from pytest_sglang.session import window

        scope = self._deployment.scope
        level = scope.power_w if scope is not None else None
        wrong = [finding for finding in self.identity(fresh=True).findings if finding.severity == "fail"]
        if wrong or self.identity().unproved:
            why = wrong[0].detail if wrong else self.identity().unproved
            raise Inconclusive(f"not measured: {why}", because="server-identity")
        self._deployment.power.require(level)
        before = Serving.of(self._deployment.controller.state())

        def proven() -> None:
            # a limit lost in the middle leaves a rate that belongs to no level
            self._deployment.power.require(level)
            self._same_process(before)

        result = window.measure(self._deployment, streams=streams, output_tokens=output_tokens, rounds=rounds, proven=proven)
        if output_tokens is None:
            self._deployment.curve.add(level, result)
        workload = self._deployment.rig.workload
        self._throughputs[(level, result.streams, output_tokens or workload.output_tokens)] = result
        if scope is not None:
            scope.throughputs.append(result)
            scope.measured.append(result)
        return result

    def _same_process(self, before: Serving) -> None:
        """Raise ServerDied where nothing serves any more after a measurement, Inconclusive where another process does."""
        state = self._deployment.controller.state()
        if before.pid is not None and not state.active and state.result != "unreadable":
            self._has_died(state, before.pid)
        if before.pid is not None and Serving.of(state).is_other(before):
            raise Inconclusive(f"the server was restarted during the measurement (pid {before.pid}, now {state.pid})")

    def _has_died(self, state: ControlState, pid: int) -> None:
        from pytest_sglang.server import deaths

        deployment = self._deployment
        cause, last_lines = deaths.while_serving(state, deployment.log, deaths.Evidence(pids=frozenset({pid})))
        self.lost_by = deployment.scope.spec.id if deployment.scope is not None else "measurement"
        raise ServerDied(f"the server died while it served (pid {pid}, {state.detail}): {cause}", cause, last_lines)

    def _known_state(self) -> bool:
        """Whether the server is active. Raises Inconclusive where its owner cannot be asked: then nothing is started or moved."""
        state = self._deployment.controller.state()
        if state.result == "unreadable":
            raise Inconclusive(f"whether {self._deployment.controller.subject} is active cannot be read: {state.detail}")
        return state.active

    def come_back(self) -> None:
        """Start the server again after its caches have been put back, and wait for it; a failure is told, not raised."""
        try:
            self._start(answering.PUT_BACK, compare=False)
        except Exception as error:
            told = Finding("did-not-come-back", "warn", self._deployment.controller.subject, str(error), "look into its log")
            self._deployment.recorder.findings((told,))
