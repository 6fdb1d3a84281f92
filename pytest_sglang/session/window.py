"""A measured window: rounds of requests until the limit is decided, the energy of each round, the record of every request."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.judge import counts
from pytest_sglang.judge.sequential import Sequential
from pytest_sglang.load import client
from pytest_sglang.load.measure import measure as run_rounds
from pytest_sglang.record import units
from pytest_sglang.record.values import Round, Throughput
from pytest_sglang.rig.model import Workload
from pytest_sglang.session import heat, underload
from pytest_sglang.session import worked as hardware_side
from pytest_sglang.session.counters import TokenCounter
from pytest_sglang.session.serving import Serving
from pytest_sglang.session.tokenizing import Tokenizer

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

LEVEL_3_SOAK_S = 300.0
"""Heat soak at level 3 where the rig file names none: five minutes of decoding, seconds of real time."""


def measure(
    deployment: Deployment,
    *,
    streams: int | None = None,
    output_tokens: int | None = None,
    rounds: int | None = None,
    proven: Callable[[], None] = lambda: None,
) -> Throughput:
    """Throughput of the promised workload (or of the given one); the limit of the current check decides how many rounds it takes.

    ``proven()`` raises where it belongs to no promise after all: then it is recorded as no sample, for whoever compares with this run.
    """
    workload = deployment.rig.workload
    streams, output_tokens = streams or workload.streams, output_tokens or workload.output_tokens
    scope = deployment.scope
    limit, quantity = scope.promised_rate(streams) if scope is not None else (None, "decode")
    sequential = Sequential(
        limit=limit,
        confidence=workload.confidence,
        min_rounds=min(rounds or workload.rounds, rounds or workload.max_rounds),
        max_rounds=rounds or workload.max_rounds,
        tolerance=workload.tolerance,
    )
    session = _Session(deployment, workload, streams, output_tokens, limit, quantity)
    before = underload.counters(deployment.hardware, deployment.hardware.serving) if deployment.hardware is not None else None
    with ExitStack() as stack:
        window = stack.enter_context(deployment.power.window()) if deployment.hardware is not None else None
        if (soak_s := workload.soak_s or (LEVEL_3_SOAK_S if deployment.options.level >= 3 else 0.0)) > 0:
            session.soak(soak_s)
        elif window is not None and len(deployment.options.power_levels_w) > 1:
            heat.until_steady(deployment, window, session.warm_up)
        result = run_rounds(
            session.one_round,
            lambda done: sequential.add(rate) if (rate := _rate(done, quantity)) is not None else None,
            warmups=workload.warmups,
            max_rounds=sequential.max_rounds,
            foreign=deployment.plane.running_requests,
            own_streams=streams,
            on_round=session.on_round,
            confidence=workload.confidence,
        )
        deployment.progress(None)
    decision = sequential.current()
    if decision is not None and decision.unsettled:
        result = msgspec.structs.replace(result, unsettled=decision.reason)
    if scope is not None:
        scope.decision = decision
    by_gpu = None
    if window is not None:
        result, by_gpu = hardware_side.observe(deployment, window, result, session.held)
    if window is not None and before is not None and deployment.hardware is not None:
        load = underload.seen(deployment.hardware, window, result, before)
        deployment.loads.extend([] if load is None else [load])
    try:
        proven()
    except Exception as error:
        _record(deployment, no_sample(result, str(error)), limit, quantity, None)
        raise
    _record(deployment, result, limit, quantity, by_gpu)
    return result


def no_sample(result: Throughput, why: str) -> Throughput:
    """``result`` with every round discarded."""
    lost = tuple(msgspec.structs.replace(each, invalid_because=why) for each in result.rounds)
    discarded = tuple(sorted([*result.discarded, *lost], key=lambda each: each.index))
    none: dict[str, None] = dict.fromkeys(("decode_tok_s", "ci_low", "ci_high", "end_to_end_tok_s", "aggregate_tok_s"))
    return msgspec.structs.replace(result, rounds=(), discarded=discarded, **none)


def _rate(done: Round, quantity: str) -> float | None:
    return done.decode_tok_s if quantity == "decode" else done.end_to_end_tok_s


class _Session:
    """One measurement's requests: prompts, rounds, soak, progress."""

    def __init__(
        self, deployment: Deployment, workload: Workload, streams: int, output_tokens: int, limit: float | None, quantity: str
    ) -> None:
        self.deployment, self.workload, self.streams, self.output_tokens = deployment, workload, streams, output_tokens
        self.limit, self.quantity = limit, quantity
        self.seed = random.SystemRandom().randrange(2**32)
        self._warmed = 1_000_000
        self.rates: list[float] = []
        self.held: dict[int, hardware_side.Held] = {}
        """What the cards' violation counters said around each round, by the round's index."""
        self.counter = TokenCounter(deployment.plane.metrics)
        self.tokenizer = Tokenizer(deployment.plane)
        promise = deployment.server.promise
        self.target = client.Target(
            url=promise.url, api=workload.api, model=deployment.server.model, api_key=deployment.plane.api_key
        )

    def one_round(self, index: int) -> Round:
        """Send one round, and hold its tokens against the server's own counter."""
        work = self.workload
        # the same prompts in each round are what "cached" means
        seed = self.seed + (index if work.prompts != "cached" else 0)
        texts = self.tokenizer.prompts(self.streams, work.prompt_tokens, seed, work.prompts)
        timeout_s = 60.0 + self.output_tokens * 1.0
        self.counter.begin()
        before = hardware_side.violations(self.deployment)
        done = client.run_round(
            self.target, texts, self.output_tokens, index=index, timeout_s=timeout_s, on_request=self._on_request
        )
        self.held[index] = hardware_side.grown(before, hardware_side.violations(self.deployment))
        if done.failures:
            # what became of a failed request's tokens nobody knows
            return done
        gained = self.counter.gained(done.output_tokens)
        wrong = done.invalid_because or counts.miscounted(done.output_tokens, gained)
        accepted = done.accept_length if done.accept_length is not None else self.counter.accept_length
        return msgspec.structs.replace(done, server_tokens=gained, invalid_because=wrong, accept_length=accepted)

    def _on_request(self, raw: dict[str, Any]) -> None:
        self.tokenizer.learn(raw["prompt_characters"], raw["prompt_tokens"])
        self.deployment.recorder.raw(raw)

    def soak(self, seconds: float) -> None:
        """Decode for so long before the first round, so that cards are as warm as they will stay."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not self.warm_up(f"heat soak, {units.duration(left)} left"):
                return  # a server that fails heats nothing; the first round tells why

    def warm_up(self, told: str) -> bool:
        """One round that counts for nothing; whether its requests ended whole."""
        self.deployment.progress(told)
        done = self.one_round(self._warmed)
        self._warmed += 1
        return not done.failures

    def on_round(self, done: Round) -> None:
        """Live progress after each round."""
        rate = _rate(done, self.quantity)
        if rate is not None and done.invalid_because is None:
            self.rates.append(rate)
        shown = f"{rate:.1f} tok/s" if rate is not None else "no rate"
        limit = f", promised {self.limit:g} tok/s" if self.limit is not None else ""
        reason = f" ({done.invalid_because})" if done.invalid_because else ""
        self.deployment.progress(f"round {done.index}: {shown}{reason}{limit}")


def _record(deployment: Deployment, result: Throughput, limit: float | None, quantity: str, by_gpu: dict[str, Any] | None) -> None:
    scope = deployment.scope
    level = scope.power_w if scope is not None else None
    row = scope.row(result.streams) if scope is not None else None
    label = f"{'' if level is None else f'{level:g} W, '}{result.streams} stream{'s' if result.streams > 1 else ''}"
    target = row.target_tok_s if row is not None else None
    promise = {"limit_tok_s": limit, "target_tok_s": target, "quantity": quantity, "energy_by_gpu": by_gpu}
    process = Serving.of(deployment.controller.state()).name
    deployment.recorder.throughput(label, level, promise, result, process=process)
