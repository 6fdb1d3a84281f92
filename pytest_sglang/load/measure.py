"""Rounds until it is decided: warm-ups thrown away, disturbed and failed rounds thrown away, three of a kind end it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from pytest_sglang.judge import counts, stats
from pytest_sglang.judge.latency import merged_share
from pytest_sglang.judge.sequential import Decision
from pytest_sglang.record.values import Round, Throughput

COUNTERS = counts.DISAGREE
FOREIGN = "someone else's traffic"
CLOCK = "the machine's clock was set"
WARM_UP = "warm-up"
SETTLING = "before the rate settled"

MOST_DISCARDED = 3
"""So many rounds lost for one reason end a measurement: it would not become better."""

POLL_S = 0.25
QUIET_WITHIN_S = 10.0
"""SGLang goes on decoding for 2 s after a streamed connection was closed: a round after a failed one waits for that."""


class Decide(Protocol):
    """Sees each valid round; a Decision ends the measurement."""

    def __call__(self, done: Round, /) -> Decision | None:
        """None: one more round."""


def measure(
    run_one: Callable[[int], Round],
    decide: Decide,
    *,
    warmups: int,
    max_rounds: int,
    foreign: Callable[[], int | None],
    own_streams: int,
    on_round: Callable[[Round], None],
    confidence: float = 0.99,
    poll_s: float = POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Throughput:
    """Run rounds 1, 2, ... (warm-ups: 0, -1, ...) until ``decide`` gives a Decision or ``max_rounds`` valid ones are there.

    ``foreign`` gives the requests that the server has, ours included, or None where it does not tell; it is asked every ``poll_s``
    while a round runs: more than ``own_streams`` twice in a row is somebody else, and the round no sample. Three rounds lost for
    one reason end it: then there is no interval, and ``failures`` says why. ``on_round`` sees every round, those that do not count
    with their ``invalid_because``. ``failed`` counts requests that did not end whole.
    """
    session = _Session(run_one, foreign, own_streams, on_round, poll_s, sleep)
    for number in range(warmups):
        session.warm_up(number + 1 - warmups)
        if session.stopped:
            break
    decision: Decision | None = None
    while not session.stopped and decision is None and len(session.valid) < max_rounds:
        done = session.next()
        if done is not None:
            decision = decide(done)
    return session.result(decision, confidence)


class _Session:
    def __init__(
        self,
        run_one: Callable[[int], Round],
        foreign: Callable[[], int | None],
        own_streams: int,
        on_round: Callable[[Round], None],
        poll_s: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._run_one, self._foreign, self._own, self._on_round = run_one, foreign, own_streams, on_round
        self._poll_s, self._sleep = poll_s, sleep
        self._index = 0
        self.valid: list[Round] = []
        self.discarded: list[Round] = []
        self.failures: Counter[str] = Counter()
        self.failed = 0
        self._lost: Counter[str] = Counter()
        self._texts: dict[str, str] = {}

    @property
    def stopped(self) -> bool:
        """Three rounds were lost for one reason."""
        return any(count >= MOST_DISCARDED for count in self._lost.values())

    def warm_up(self, index: int) -> None:
        """A round that never counts; its failed requests do, since a server that fails now will fail then."""
        done, _ = self._watched(index)
        if done.failures:
            self._lose(done, "failed requests")
        else:
            self._on_round(msgspec.structs.replace(done, invalid_because=WARM_UP))

    def next(self) -> Round | None:
        """One more round; None where it is no sample."""
        self._index += 1
        done, disturbed = self._watched(self._index)
        if done.failures:
            self._lose(done, "failed requests")
        elif disturbed:
            self._lose(msgspec.structs.replace(done, invalid_because=FOREIGN), FOREIGN)
            self.failures[FOREIGN] += 1
        elif done.invalid_because is not None:
            kind = next((each for each in (CLOCK, COUNTERS) if done.invalid_because.startswith(each)), done.invalid_because)
            self._lose(done, kind)
            # the first one's numbers speak for all of a kind
            self.failures[self._texts.setdefault(kind, done.invalid_because)] += 1
        else:
            self.valid.append(done)
            self._on_round(done)
            return done
        return None

    def _lose(self, done: Round, kind: str) -> None:
        self._lost[kind] += 1
        self.failed += len(done.failures)
        self.failures.update(done.failures)
        self.discarded.append(done)
        self._on_round(done)
        if not self.stopped:
            self._wait_for_quiet()

    def _wait_for_quiet(self) -> None:
        waited = 0.0
        while waited < QUIET_WITHIN_S and (_ask(self._foreign) or 0) > 0:
            self._sleep(self._poll_s)
            waited += self._poll_s

    def _watched(self, index: int) -> tuple[Round, bool]:
        with Watch(self._foreign, self._own, self._poll_s) as watch:
            done = self._run_one(index)
        return done, watch.disturbed

    def result(self, decision: Decision | None, confidence: float) -> Throughput:
        """Medians over the rounds that count."""
        settling = decision.discarded if decision is not None else 0
        early = [msgspec.structs.replace(each, invalid_because=SETTLING) for each in self.valid[:settling]]
        counted = self.valid[settling:]
        accepted = [each.accept_length for each in counted if each.accept_length is not None]
        sure = decision is not None and not self.stopped
        return Throughput(
            streams=self._own,
            rounds=tuple(counted),
            decode_tok_s=_median([each.decode_tok_s for each in counted]),
            ci_low=decision.ci_low if decision is not None and sure else None,
            ci_high=decision.ci_high if decision is not None and sure else None,
            confidence=confidence,
            failed=self.failed,
            failures=dict(self.failures),
            client_lag_s=max((each.client_lag_s for each in counted), default=0.0),
            accept_length=sum(accepted) / len(accepted) if accepted else None,
            end_to_end_tok_s=_median([each.end_to_end_tok_s for each in counted]),
            aggregate_tok_s=_median([each.aggregate_tok_s for each in counted]),
            merged_share=merged_share(counted),
            discarded=tuple(sorted([*early, *self.discarded], key=lambda each: each.index)),
        )


class Watch:
    """Asks, in a thread of its own, how many requests the server has, as long as a round runs."""

    def __init__(self, foreign: Callable[[], int | None], own_streams: int, poll_s: float) -> None:
        self._foreign, self._own, self._poll_s = foreign, own_streams, poll_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="sglang-foreign-traffic", daemon=True)
        self.disturbed = False

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # a server that hangs must not hold the round; the thread ends with its own time-out
        self._thread.join(timeout=2.0)

    def _poll(self) -> None:
        in_a_row = 0
        while not self._over.is_set():
            running = _ask(self._foreign)
            if self._over.is_set():
                return
            in_a_row = in_a_row + 1 if running is not None and running > self._own else 0
            self.disturbed = self.disturbed or in_a_row >= 2
            self._over.wait(self._poll_s)


def _ask(foreign: Callable[[], int | None]) -> int | None:
    """The count, or None: not being able to ask is no reason to lose a round."""
    try:
        return foreign()
    except Exception:
        return None


def _median(rates: list[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return stats.median(known) if known and len(known) == len(rates) else None
