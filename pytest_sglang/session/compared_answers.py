"""The answers of two sets of runs: are they the same, apart at near ties, or changed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pytest_sglang.record.run import Run, Verdict
from pytest_sglang.record.values import Value

Outcome = Literal["equal", "near ties", "changed", "too little to compare", "not recorded"]


class AnswersComparison(Value, frozen=True, kw_only=True):
    """Answers before and after. ``text`` says all of it in one line; ``verdict`` None: shown, not judged."""

    outcome: Outcome
    verdict: Verdict | None
    text: str
    tokens: int = 0
    """Answered tokens of the reference, all prompts together."""
    equal: int = 0
    """Those that came out the same, in the same context."""
    near_ties: int = 0
    """Forks at which the two best tokens were nearly tied."""
    clear: int = 0
    """Forks at a clear margin: the answers have changed."""
    logprob_difference: float | None = None
    """Mean absolute difference of the log-probabilities of the same tokens in the same context, nats."""
    worst: str | None = None
    """The clearest fork, in words."""


def compared(before: Sequence[Run], after: Sequence[Run], *, judged: bool) -> AnswersComparison | None:
    """The newest answers of ``before`` against all of ``after``, the worst of them; None where neither side has asked any.

    ``judged`` False: model or quantization is what is under test, so that changed answers are no fault.
    """
    if not any(run.answers for run in (*before, *after)):
        return None
    raise NotImplementedError  # the comparing itself follows: signature and values stand
