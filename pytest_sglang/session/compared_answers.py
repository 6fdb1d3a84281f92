"""The answers of two sets of runs: are they the same, apart at near ties, or changed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from pytest_sglang.judge import answering
from pytest_sglang.judge import answers as judge
from pytest_sglang.judge.answers import Compared
from pytest_sglang.record.answers import Answers
from pytest_sglang.record.run import Run, Verdict
from pytest_sglang.record.values import Value
from pytest_sglang.session import answering as answers_check
from pytest_sglang.session import compared_changes

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
    sides = [[each for run in runs for each in _series(run)] for runs in (before, after)]
    if not any(sides):
        return None
    whole = [[each for each in side if not each.why and each.after != answering.AGAIN] for side in sides]
    for runs, side, usable, name in zip((before, after), sides, whole, ("before", "after"), strict=True):
        if not usable:
            # what was asked and not answered is a gap, and so is what was there before; what nobody had asked for is none
            gap = judged and bool(side or (name == "after" and whole[0]))
            why = next((each.why for each in side if each.why), None) or _unasked(runs)
            return AnswersComparison(
                outcome="not recorded", verdict="inconclusive" if gap else None, text=f"no answers {name}: {why}"
            )
    pairs = [(now, found) for now in whole[1] if (found := _compare(_reference(before), now)) is not None]
    if not pairs:
        return AnswersComparison(outcome="not recorded", verdict=None, text="the two sides were asked other prompts")
    now, worst = max(pairs, key=lambda pair: _badness(pair[1]))
    return _said(worst, now, judged)


def _unasked(runs: Sequence[Run]) -> str:
    """Why these runs have no answers, by the newest of them that tells."""
    for run in reversed(runs):
        if run.answers:
            return "they are of a form that this version does not know"
        reason = next((each.reason for each in run.not_checked if each.id == answers_check.CHECK), None)
        if reason is not None:
            return f"the check was {reason}" if reason in compared_changes.UNASKED else f"not asked: {reason}"
        made = next((each for each in run.checks if each.id == answers_check.CHECK), None)
        if made is not None and made.inconclusive_because:
            return made.inconclusive_because
    if not runs or any(answers_check.CHECK in run.not_promised for run in runs):
        return "the rig file did not ask for them ([answers])"
    return "they were not asked"


def _series(run: Run) -> list[Answers]:
    """The run's answers; none where they are of another form than this version knows."""
    try:
        return [msgspec.convert(each, Answers) for each in run.answers]
    except msgspec.ValidationError:
        return []


def _reference(before: Sequence[Run]) -> Answers:
    """The first whole answers of the newest run that has some."""
    return next(each for run in reversed(before) for each in _series(run) if not each.why and each.after != answering.AGAIN)


def _compare(reference: Answers, now: Answers) -> Compared | None:
    """By the prompts that both sides were asked."""
    both = {each.prompt for each in reference.answers} & {each.prompt for each in now.answers}
    if not both:
        return None
    mine, theirs = (
        msgspec.structs.replace(each, answers=tuple(answer for answer in each.answers if answer.prompt in both))
        for each in (reference, now)
    )
    return judge.compare(mine, theirs)


def _badness(found: Compared) -> tuple[bool, bool, int, int]:
    return (found.changed, found.doubt is not None, len(found.clear), len(found.near))


def _said(found: Compared, now: Answers, judged: bool) -> AnswersComparison:
    clear = found.clear
    outcome: Outcome = (
        "changed" if found.changed else "too little to compare" if found.doubt else "near ties" if found.forks else "equal"
    )
    verdicts: dict[Outcome, Verdict] = {"changed": "fail", "too little to compare": "inconclusive"}
    text = f"{found.doubt}; {found}" if outcome == "too little to compare" else str(found)
    return AnswersComparison(
        outcome=outcome,
        verdict=verdicts.get(outcome, "pass") if judged else None,
        text=text if now.after == "as found" else f"{text} (after the {now.after})",
        tokens=found.tokens,
        equal=found.equal,
        near_ties=len(found.near),
        clear=len(clear),
        logprob_difference=found.mean_nats,
        worst=str(clear[0]) if clear else None,
    )
