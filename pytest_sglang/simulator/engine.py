"""The simulated scheduler: requests in, tokens at their times out, at the speed that the cards' power limit and links allow.

Every token has a moment on an absolute schedule, so that late wake-ups of the event loop never add up.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_sglang.simulator import answers, crashes
from pytest_sglang.simulator.answers import Answer, Scored
from pytest_sglang.simulator.config import Config
from pytest_sglang.simulator.log import Log
from pytest_sglang.simulator.metrics import Metrics
from pytest_sglang.simulator.startup import KV_TOKENS, MAX_RUNNING
from pytest_sglang.simulator.state import HardwareState
from pytest_sglang.simulator.tokens import EOS

ROUND_CV = 0.01
"""Coefficient of variation of a request's speed."""
BATCH_COST = 0.055
"""Every further stream makes a decoding step longer by this share: the aggregate grows, but less than the streams."""
FIRST_TOKEN_S = 0.06
PREFILL_TOK_S = 2000.0
DOUBLE_SHARE = 0.02
"""Share of chunks that carry two tokens."""
SLOW = 0.8
ABORT_AFTER_S = 2.0
"""A closed connection is noticed this long after the response ended."""
EARLY_TOKENS = 3
INFLATED = 1.1
LOG_STEPS = 40
COMPILING, COMPILING_COST = 2, 20.0
"""So many requests run so much slower after a start under the fault compiles-after-ready; the server's own warm-up does not."""
_OWN_WARM_UP = 8
DIES_AFTER = 300
"""Tokens after which a scheduler is killed under the fault dies-serving."""


@dataclass
class Request:
    """One generation. Times are the event loop's."""

    prompt: list[int]
    max_tokens: int
    ignore_eos: bool = False
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    output: list[int] = field(default_factory=list)
    finish: dict[str, Any] | None = None
    cached: int = 0
    aborted: bool = False
    received_s: float = 0.0
    received_at: float = field(default_factory=time.time)
    first_s: float | None = None
    last_s: float | None = None
    queued_s: float = 0.0
    inflated: float = 1.0
    """How many tokens the answer tells of for each that was generated."""
    scores_from: int | None = None
    """Place in the prompt from which its tokens are scored; None = nothing is scored."""
    prompt_scores: list[Scored] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)

    @property
    def told(self) -> int:
        """Output tokens as the answer tells them."""
        return min(self.max_tokens, round(len(self.output) * self.inflated))

    @property
    def finish_reason(self) -> str | None:
        """As the OpenAI routes name it."""
        return None if self.finish is None else str(self.finish["type"])

    @property
    def matched_stop(self) -> int | str | None:
        """The token that ended it."""
        return None if self.finish is None else self.finish.get("matched")


def _bridged(config: Config) -> bool:
    """NVLink carries what the serving cards exchange: every one of them is linked to another one."""
    ailments, serving = config.ailments, config.hardware.serving
    return all(any(ailments.linked(one, other) for other in serving if other != one) for one in serving)


class Engine:
    """The running batch. Everything happens on one event loop."""

    def __init__(
        self, config: Config, state: HardwareState, log: Log, seed: str | None, start: int = 1, *, stale: bool = False
    ) -> None:
        self._config, self._state, self._log = config, state, log
        self._hardware = config.hardware
        self._noise = random.Random(seed)
        self._prefixes: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._room = asyncio.Semaphore(MAX_RUNNING)
        self._last_prefill_s = self._last_decode_s = time.monotonic()
        self._steps = self._tokens_since = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.running: dict[str, Request] = {}
        self.waiting = 0
        self.gen_throughput = 0.0
        self.metrics = Metrics()
        gain = 1.0 + (self._hardware.curve.nvlink_gain if _bridged(config) else 0.0)
        self._factor = gain * (SLOW if "slow-decode" in config.faults else 1.0)
        self._inflated = INFLATED if "inflated-usage" in config.faults else 1.0
        self._ends_early, self._not_a_number = "early-stop" in config.faults, "nan-tokens" in config.faults
        self._compiling = COMPILING if config.acts("compiles-after-ready", start) else 0
        self._ills = tuple(name for name in (answers.SUMS, answers.TIES) if config.acts(name, start))
        if stale:
            self._ills = (answers.STALE,)
        self._left = DIES_AFTER if config.acts("dies-serving", start) else None

    # --- speed -------------------------------------------------------------------------------------------------------------

    def tok_s(self) -> float:
        """Tokens per second of a single stream at the lowest limit among the serving cards, as slow as the slowest of them."""
        limit_w, share = self._state.pace()
        return self._hardware.curve.tok_s(limit_w) * share * self._factor

    def _step_s(self) -> float:
        return (1.0 + BATCH_COST * (len(self.running) - 1)) / self.tok_s()

    def used_tokens(self) -> int:
        """KV slots that running requests hold."""
        return sum(len(each.prompt) + len(each.output) for each in self.running.values())

    # --- requests ----------------------------------------------------------------------------------------------------------

    async def run(self, request: Request) -> AsyncIterator[list[int]]:
        """Play one request: yields the tokens of each chunk as they come; ``request.finish`` is set before the last one."""
        request.received_s = time.monotonic()
        request.inflated = self._inflated
        self.waiting += 1
        try:
            await self._room.acquire()
        finally:
            self.waiting -= 1
        self.running[request.rid] = request
        try:
            self._loaded()
            async for chunk in self._play(request):
                yield chunk
        finally:
            if request.finish is None and not request.aborted:
                # the reader has gone: the scheduler goes on until it notices
                task = asyncio.get_running_loop().create_task(self._abandon(request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._release(request)

    async def _abandon(self, request: Request) -> None:
        await asyncio.sleep(ABORT_AFTER_S)
        request.aborted = True
        self._release(request)

    def _release(self, request: Request) -> None:
        self.running.pop(request.rid, None)
        self._room.release()
        metrics, now_s = self.metrics, time.monotonic()
        metrics.requests += 1
        metrics.aborted += request.aborted
        metrics.prompt_tokens += len(request.prompt)
        metrics.cached_tokens += request.cached
        metrics.generated_tokens += len(request.output)
        metrics.whole.add(now_s - request.received_s)
        if not self.running:
            self._state.set_load(0.0)

    def _loaded(self) -> None:
        if len(self.running) == 1:
            self._state.set_load(1.0)

    async def _play(self, request: Request) -> AsyncIterator[list[int]]:
        start_s = time.monotonic()
        request.queued_s = start_s - request.received_s
        self.metrics.queued.add(request.queued_s)
        request.cached = self._match(request.prompt)
        if request.scores_from is not None:
            # what is to be scored must be computed
            request.cached = min(request.cached, request.scores_from)
        due_s = start_s + FIRST_TOKEN_S + (len(request.prompt) - request.cached) / PREFILL_TOK_S
        await _until(due_s)
        self._prefilled(request)
        speed = max(1 - 2.5 * ROUND_CV, min(1 + 2.5 * ROUND_CV, self._noise.gauss(1.0, ROUND_CV)))
        if self._compiling and request.max_tokens > _OWN_WARM_UP:
            self._compiling -= 1
            speed /= COMPILING_COST
        answer, length, reason = Answer(request.prompt, self._ills, self._noise), *self._length(request)
        if request.scores_from is not None and request.scores_from < len(request.prompt):
            request.prompt_scores = answer.of_prompt()[request.scores_from :]
        held: list[int] = []
        while True:
            request.scores.append(answer.next())
            request.output.append(request.scores[-1].token)
            held.append(request.output[-1])
            self._produced(request)
            if request.aborted:
                request.finish = {"type": "abort", "message": "Abort in waiting queue", "status_code": None, "err_type": None}
            elif len(request.output) >= length:
                request.finish = reason
            # the first and the last token always travel at once, so that the times a client measures are the engine's
            middle = 1 < len(request.output) < length - 1
            if request.finish is not None or not (middle and len(held) < 2 and self._noise.random() < DOUBLE_SHARE):
                yield held
                held = []
            if request.finish is not None:
                return
            due_s += self._step_s() / speed
            await _until(due_s)

    def _length(self, request: Request) -> tuple[int, dict[str, Any]]:
        wanted = max(1, math.ceil(request.max_tokens / self._inflated))
        stop = {"type": "stop", "matched": EOS}
        if self._not_a_number:
            return 1, {"type": "stop", "matched": "NaN happened"}
        if self._ends_early:
            return max(1, wanted - EARLY_TOKENS), stop
        natural = Answer(request.prompt).natural_length
        if not request.ignore_eos and natural < wanted:
            return natural, stop
        return wanted, {"type": "length", "length": request.max_tokens}

    def abort(self, rid: str | None) -> None:
        """Abort one request, or all of them; an unknown one is nobody's error."""
        for request in self.running.values():
            if rid is None or request.rid == rid:
                request.aborted = True

    def flush(self) -> bool:
        """Forget cached prefixes; False while anything runs or waits."""
        if self.running or self.waiting:
            return False
        self._prefixes.clear()
        self._log.line("Cache flushed successfully!", 0)
        return True

    def _match(self, prompt: Sequence[int]) -> int:
        """Prompt tokens whose KV is still there from an earlier prompt; the last one is always computed."""
        best = 0
        for seen in self._prefixes:
            same = 0
            for one, other in zip(seen, prompt, strict=False):
                if one != other:
                    break
                same += 1
            best = max(best, same)
        key = tuple(prompt)
        self._prefixes[key] = None
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > 64:
            self._prefixes.popitem(last=False)
        return min(best, max(0, len(prompt) - 1))

    # --- statistics lines --------------------------------------------------------------------------------------------------

    def _prefilled(self, request: Request) -> None:
        now_s, new = time.monotonic(), len(request.prompt) - request.cached
        throughput = new / max(now_s - self._last_prefill_s, 1e-3)
        self._last_prefill_s = now_s
        self.metrics.passes["prefill_none"] += 1
        self.metrics.realtime["prefill_compute"] += new
        self.metrics.realtime["prefill_cache"] += request.cached
        self._log.line(
            f"Prefill batch, #new-seq: 1, #new-token: {new}, #cached-token: {request.cached}, token usage: {self._usage():.2f}, "
            f"#running-req: {len(self.running) - 1}, #queue-req: {self.waiting}, #pending-token: 0, cuda graph: False, "
            f"input throughput (token/s): {throughput:.2f}",
            0,
        )

    def _produced(self, request: Request) -> None:
        now_s = time.monotonic()
        if self._left is not None:
            self._left -= 1
            if not self._left:
                crashes.killed_scheduler(self._log)
        if request.first_s is None:
            request.first_s = now_s
            self.metrics.first_token.add(now_s - request.received_s)
        elif request.last_s is not None:
            self.metrics.between.add(now_s - request.last_s)
        request.last_s = now_s
        self._tokens_since += 1
        self._steps += 1 / max(1, len(self.running))
        if self._steps >= LOG_STEPS:
            self._decoded(now_s)

    def _decoded(self, now_s: float) -> None:
        self.gen_throughput = self._tokens_since / max(now_s - self._last_decode_s, 1e-3)
        self.metrics.realtime["decode"] += round(self._tokens_since)
        self.metrics.passes["decode_cuda_graph"] += LOG_STEPS
        self._log.line(
            f"Decode batch, #running-req: {len(self.running)}, #token: {self.used_tokens()}, token usage: {self._usage():.2f}, "
            f"cuda graph: True, gen throughput (token/s): {self.gen_throughput:.2f}, #queue-req: {self.waiting}",
            0,
        )
        self._last_decode_s, self._steps, self._tokens_since = now_s, 0.0, 0.0

    def _usage(self) -> float:
        return self.used_tokens() / KV_TOKENS


async def _until(moment_s: float) -> None:
    left_s = moment_s - time.monotonic()
    # a moment that has passed still lets others run
    await asyncio.sleep(max(0.0, left_s))
