"""What the simulated model says: the next token follows from everything before it, with log-probabilities as a language model has them.

The same text has the same continuation however it came about, as greedy decoding gives it: an answer that is asked for again behind its
own first tokens goes on alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from pytest_sglang.simulator.tokens import SPACED

STALE, SUMS, TIES = "garbled-answers", "wrong-p2p", "near-ties"
"""Faults that change what is said."""
TIED_SHARE, TIED_NATS = 0.12, 0.4
"""In so many places the two best tokens are no further apart than this."""
_LEAST_NATS, _USUAL_NATS = 0.5, 3.5
STALE_SHARE = 0.6
"""Share of the tokens that stale kernels get wrong, always the same ones."""
SUMS_SHARE = 0.03
"""Share of the steps in which a sum over the cards comes out wrong, never the same ones."""
WRONG_NATS = 2.5
"""A wrong token is chosen by at least this margin: wrong logits look as sure as right ones."""
_NOISE_NATS = 0.05


class Scored(NamedTuple):
    """A token, its log-probability (nats), and the best tokens in its place with theirs, the greatest first."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class Answer:
    """The tokens that follow a prompt. ``ills``: the faults that act; ``noise``: theirs, and of nothing else."""

    def __init__(self, prompt: Sequence[int], ills: Iterable[str] = (), noise: random.Random | None = None) -> None:
        self._ills, self._noise = frozenset(ills), noise or random.Random()
        self._prompt = list(prompt)
        self._context = context(prompt)
        self.natural_length = random.Random(self._context).randint(24, 400)
        """Tokens until the model would end by itself."""

    def next(self) -> Scored:
        """The next token: a word with a space before it, so that every token shows as text."""
        best = _distribution(self._context)
        if STALE in self._ills and _drawn(self._context, "stale") < STALE_SHARE:
            best = _wrong(random.Random(f"{self._context} stale"))
        elif SUMS in self._ills and self._noise.random() < SUMS_SHARE:
            best = _wrong(self._noise)
        elif TIES in self._ills:
            moved = [(token, logprob + self._noise.gauss(0.0, _NOISE_NATS)) for token, logprob in best]
            tied = best[0][1] - best[1][1] < TIED_NATS
            if tied and self._noise.random() < 0.5:
                moved[1] = (moved[1][0], moved[0][1] + 0.01)
            best = tuple(sorted(moved, key=lambda each: -each[1]))
        token, logprob = best[0]
        self._context = context((token,), self._context)
        return Scored(token, logprob, best)

    def of_prompt(self) -> list[Scored]:
        """The prompt's own tokens but the first, as the model scores them."""
        found, before = [], context(self._prompt[:1])
        for token in self._prompt[1:]:
            best = _distribution(before)
            logprob = best[0][1] - random.Random(f"{before} {token}").expovariate(0.5)
            if STALE in self._ills:
                logprob -= 4.0 * _drawn(before, "prompt")
            elif SUMS in self._ills and self._noise.random() < SUMS_SHARE:
                logprob -= 5.0
            elif TIES in self._ills:
                logprob += self._noise.gauss(0.0, _NOISE_NATS)
            found.append(Scored(token, logprob, best))
            before = context((token,), before)
        return found


def context(tokens: Iterable[int], before: int = 0) -> int:
    """All tokens so far as one number."""
    for token in tokens:
        before = crc32(token.to_bytes(8, "little", signed=True), before)
    return before


def _distribution(context: int) -> tuple[tuple[int, float], ...]:
    """The two best tokens behind a context."""
    drawn = random.Random(context)
    one, other = drawn.sample(SPACED, 2)
    tied = drawn.random() < TIED_SHARE
    margin = drawn.uniform(0.01, TIED_NATS) if tied else _LEAST_NATS + drawn.expovariate(1 / _USUAL_NATS)
    return _pair(one, other, margin, drawn.uniform(0.0, 0.25))


def _wrong(drawn: random.Random) -> tuple[tuple[int, float], ...]:
    one, other = drawn.sample(SPACED, 2)
    return _pair(one, other, WRONG_NATS + drawn.expovariate(0.5), drawn.uniform(0.0, 0.25))


def _pair(one: int, other: int, margin: float, rest: float) -> tuple[tuple[int, float], ...]:
    logprob = math.log((1.0 - rest) / (1.0 + math.exp(-margin)))
    return (one, logprob), (other, logprob - margin)


def _drawn(context: int, what: str) -> float:
    return random.Random(f"{context} {what}").random()
