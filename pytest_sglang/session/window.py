"""A measured window: rounds of requests until the limit is decided, the energy of each round, the record of every request."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.gpu.readings import value_or_none
from pytest_sglang.judge import counts
from pytest_sglang.judge.sequential import Sequential
from pytest_sglang.load import client
from pytest_sglang.load.measure import measure as run_rounds
from pytest_sglang.record import units
from pytest_sglang.record.values import Round, Throughput
from pytest_sglang.rig.model import Workload
from pytest_sglang.session.counters import TokenCounter
from pytest_sglang.session.tokenizing import Tokenizer

if TYPE_CHECKING:
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.session.deployment import Deployment

LEVEL_3_SOAK_S = 300.0
"""Heat soak at level 3 where the rig file names none: five minutes of decoding, seconds of real time."""


def measure(
    deployment: Deployment, *, streams: int | None = None, output_tokens: int | None = None, rounds: int | None = None
) -> Throughput:
    """Throughput of the promised workload (or of the given one); the limit of the current check decides how many rounds it takes."""
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
    with ExitStack() as stack:
        window = stack.enter_context(deployment.power.window()) if deployment.hardware is not None else None
        session.soak(workload.soak_s or (LEVEL_3_SOAK_S if deployment.options.level >= 3 else 0.0))
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
    if scope is not None:
        scope.decision = sequential.current()
    if window is not None:
        result = _with_energy(deployment, window, result)
        deployment.last_reasons = _reasons(deployment, window, result)
        deployment.recorder.power_series(_series(deployment, window, result))
    _record(deployment, result, limit, quantity)
    return result


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
        self.rates: list[float] = []
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
        done = client.run_round(
            self.target, texts, self.output_tokens, index=index, timeout_s=timeout_s, on_request=self._on_request
        )
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
        index = 1_000_000
        while (left := until - time.monotonic()) > 0:
            self.deployment.progress(f"heat soak, {units.duration(left)} left")
            self.one_round(index)
            index += 1

    def on_round(self, done: Round) -> None:
        """Live progress after each round."""
        rate = _rate(done, self.quantity)
        if rate is not None and done.invalid_because is None:
            self.rates.append(rate)
        shown = f"{rate:.1f} tok/s" if rate is not None else "no rate"
        limit = f", promised {self.limit:g} tok/s" if self.limit is not None else ""
        reason = f" ({done.invalid_because})" if done.invalid_because else ""
        self.deployment.progress(f"round {done.index}: {shown}{reason}{limit}")


def _with_energy(deployment: Deployment, window: EnergyWindow, result: Throughput) -> Throughput:
    """Joules of each round over the serving cards, and the temperature of the warmest card at its beginning."""
    serving = [card.uuid for card in (deployment.hardware.serving if deployment.hardware is not None else ())]
    rounds = []
    for each in result.rounds:
        energies = window.between(each.begin_s, each.end_s)
        joules = [energies[uuid].joules for uuid in serving if uuid in energies]
        known = [value for value in joules if value is not None]
        total = sum(known) if known and len(known) == len(serving) else None
        rounds.append(msgspec.structs.replace(each, joules=total, start_c=window.temperature_at(each.begin_s, serving)))
    return msgspec.structs.replace(result, rounds=tuple(rounds))


def _reasons(deployment: Deployment, window: EnergyWindow, result: Throughput) -> dict[str, dict[str, float]] | None:
    """What limited the serving cards' clocks while they worked, as shares of that time, by label."""
    if deployment.hardware is None or not result.rounds:
        return None
    shares = window.reason_shares(result.rounds[0].begin_s, result.rounds[-1].end_s)
    return {card.label: shares[card.uuid] for card in deployment.hardware.serving if shares.get(card.uuid)} or None


def _series(deployment: Deployment, window: EnergyWindow, result: Throughput) -> dict[str, Any]:
    if deployment.hardware is None:
        return {}
    labels = {}
    for card in deployment.hardware.present:
        labels[card.uuid] = {"label": f"GPU {card.index}", "limit_w": value_or_none(card.limits().enforced_w)}
    marks = [(each.begin_s, each.end_s, f"round {each.index}") for each in result.rounds]
    return window.series(labels, marks, zero_s=deployment.recorder.began_wall)


def _record(deployment: Deployment, result: Throughput, limit: float | None, quantity: str) -> None:
    scope = deployment.scope
    level = scope.power_w if scope is not None else None
    row = scope.row(result.streams) if scope is not None else None
    label = f"{'' if level is None else f'{level:g} W, '}{result.streams} stream{'s' if result.streams > 1 else ''}"
    target = row.target_tok_s if row is not None else None
    promise = {"limit_tok_s": limit, "target_tok_s": target, "quantity": quantity}
    deployment.recorder.throughput(label, level, promise, result)
