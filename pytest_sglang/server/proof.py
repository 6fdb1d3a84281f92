"""Signs of readiness, and their proof: an exact completion, which is the first request of all; whether it ran alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Value
from pytest_sglang.server.http import Completion, ControlPlane

LOOK_S = 0.2
"""Wall seconds between two looks at the server's load while the first request runs (12 ms of a real server's time each)."""
CROWDED = "somebody else's requests were on the server during the first one"


class Sign(Value, frozen=True):
    """One answer to the question whether it is ready. ``asked_at`` in rig time; ``status`` None: no answer."""

    status: int | None
    asked_at: float
    seconds: float
    path: str


class Proof(Value, frozen=True):
    """One try to get an exact completion. ``why`` it is none ("" = proved); ``others``: why its time is no first request's ("" = it is)."""

    completion: Completion
    ended_at: float
    why: str
    others: str = ""


class Prover:
    """Asks one starting server whether it is ready, and has it prove that."""

    def __init__(self, plane: ControlPlane, clock: Clock, tokens: int, *, timeout_s: float) -> None:
        self._plane, self._clock, self._tokens, self._timeout_s = plane, clock, tokens, timeout_s
        self._has_flag = True
        self._cut_off = 0

    def ask(self) -> Sign:
        """One status question: the flag of 0.5.20 and later, else /health, which answers 503 at once while the server starts."""
        asked_at = self._clock.time()
        if self._has_flag:
            flag = self._plane.probe("/ready", self._plane.timeout_s)
            if flag.status != 404:
                return Sign(flag.status, asked_at, flag.seconds, "/ready")
            self._has_flag = False
        health = self._plane.probe("/health")
        # it generates a token, and goes on with that when nobody waits for the answer any more
        self._cut_off += health.status is None
        return Sign(health.status, asked_at, health.seconds, "/health")

    def prove(self) -> Proof:
        """An exact completion, the first request of all; then /health, where it was not the sign itself."""
        with Others(self._plane.running_requests, 1 + self._cut_off) as others:
            completion = self._plane.complete(self._tokens, timeout_s=self._timeout_s)
        ended_at, why = self._clock.time(), ""
        if not completion.ok:
            why = f"a completion is not what was asked for: {completion.why}"
        elif self._has_flag and (status := self._plane.health()) != 200:
            why = f"/health {'does not answer' if status is None else f'answers {status}'}"
        return Proof(completion, ended_at, why, CROWDED if others.seen else "")


class Others:
    """Looks, in a thread of its own, whether a server has more requests than the ``own`` ones; twice in a row is somebody else."""

    def __init__(self, running: Callable[[], int | None], own: int) -> None:
        self._running, self._own = running, own
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="pytest-sglang-others", daemon=True)
        self.seen = False

    def __enter__(self) -> Others:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        in_a_row = 0
        while not self._over.is_set():
            try:
                running = self._running()
            except Exception:  # not being able to ask says nothing of others
                running = None
            if running is None or self._over.is_set():
                return
            in_a_row = in_a_row + 1 if running > self._own else 0
            self.seen = self.seen or in_a_row >= 2
            self._over.wait(LOOK_S)
