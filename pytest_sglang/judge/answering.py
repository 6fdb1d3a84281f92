"""Verdicts on answers: sound ones, the same after every start, what the rig file expects. Pure; the comparing is ``judge.answers``'s."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pytest_sglang.judge import answers as judge
from pytest_sglang.judge.answers import Compared
from pytest_sglang.judge.verdict import Judgement, inconclusive
from pytest_sglang.record.answers import EXPECTED, Answers
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.rig.model import AnswersPromise

AGAIN = "asked again"
"""``Answers.after`` of a second asking within one start."""
_NONE = Limit("<=", 0, "count")


def judged(series: Sequence[Answers], promise: AnswersPromise) -> list[Judgement]:
    """Every judgement on a run's answers, in the order in which they were asked; the first ones are the reference."""
    if not series:
        return [inconclusive("nothing was asked", "nothing was asked")]
    # of equals the first one speaks
    return [same(series), sound(series, promise), *(expected(series, each.prompt, each.contains) for each in promise.expect)]


def sound(series: Sequence[Answers], promise: AnswersPromise) -> Judgement:
    """No answer with a number that is none or a choice that was not greedy; text, where that is promised or was there before."""
    bad = [f"{_when(each)}: {problem}" for each in series for problem in judge.broken(each)]
    if not any(each.answers for each in series):
        return inconclusive(f"whether answers are garbled is not known: {series[0].why or 'there is none'}", "no answers")
    first = reference_of(series) or series[0]
    for each in series:
        half = len(each.answers) / 2
        new = judge.newly_no_text(first, each)
        if len(new) > half:
            bad.append(
                f"{_when(each)}: {len(new)} of {len(each.answers)} answers, text before, are a few tokens over and over or no text"
            )
        elif promise.text and len(none := judge.no_text(each)) > half:
            bad.append(f"{_when(each)}: {len(none)} of {len(each.answers)} answers are a few tokens over and over, or no text")
    measured = {"garbled_answers": Measurement(len(bad), "count")}
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        return Judgement(
            verdict="fail",
            message=f"garbled: {bad[0]}{more}",
            quantity="garbled_answers",
            measured=measured,
            limit=_NONE,
            cause=cause(series) or "what comes out of the model is no answer: look into kernels, weights and the cards' memory",
        )
    return Judgement(verdict="pass", message="no answer is garbled", quantity="garbled_answers", measured=measured, limit=_NONE)


def same(series: Sequence[Answers]) -> Judgement:
    """Every later asking beside the first one that was answered whole."""
    first = reference_of(series)
    if first is None:
        return inconclusive(f"no answers to compare with ({_when(series[0])}): {series[0].why}", "no answers")
    later = series[series.index(first) + 1 :]
    if not later:
        lost = f" ({_when(series[0])}: {series[0].why})" if first is not series[0] else ""
        return inconclusive(f"asked once only: nothing to compare with{lost}", "asked once only")
    beside = [(each, judge.compare(first, each)) for each in later]
    measured = _measured([found for _, found in beside])
    changed = [(each, found) for each, found in beside if found.changed]
    if changed:
        each, found = max(changed, key=lambda pair: len(pair[1].clear))
        others = [_when(other) for other, _ in changed if other is not each]
        also = f"; also {', '.join(others)}" if others else ""
        return Judgement(
            verdict="fail",
            message=f"{_when(each)} the answers have changed: {found}{also}",
            quantity="clear_divergences",
            measured=measured,
            limit=_NONE,
            cause=cause(series),
        )
    for each, found in beside:
        why = each.why or found.doubt
        if why:
            told = inconclusive(f"{_when(each)}: {why}", "no answers" if each.why else "too little to compare")
            return Judgement(**{name: getattr(told, name) for name in told.__struct_fields__} | {"measured": measured})
    lost = f"; not answered {_when(series[0])}: {series[0].why}" if first is not series[0] else ""
    if lost and len({each.after for each in series if not each.why and each.after != AGAIN}) < 2:
        # asked twice in one start, and never before it: nothing is told of what the start changed
        told = inconclusive(f"the answers before the start are not known ({_when(series[0])}: {series[0].why})", "no answers")
        return Judgement(**{name: getattr(told, name) for name in told.__struct_fields__} | {"measured": measured})
    return Judgement(
        verdict="pass", message=f"{_alike(beside)}{lost}", quantity="clear_divergences", measured=measured, limit=_NONE
    )


def reference_of(series: Sequence[Answers]) -> Answers | None:
    """The first asking that was answered whole."""
    return next((each for each in series if not each.why), None)


def _alike(beside: Sequence[tuple[Answers, Compared]]) -> str:
    times = f"{beside[0][1].prompts} prompts, asked {len(beside) + 1} times"
    worst = max((found for _, found in beside), key=lambda found: (len(found.forks), found.mean_nats or 0.0))
    if not worst.forks:
        return f"{times}: all {worst.tokens} tokens the same each time"
    return f"{times}: {worst}"


def _measured(found: Sequence[Compared]) -> dict[str, Measurement]:
    """Of the asking that differs most."""
    worst = max(found, key=lambda each: (len(each.clear), len(each.near)))
    numbers: dict[str, tuple[float | int | None, str]] = {
        "clear_divergences": (len(worst.clear), "count"),
        "near_ties": (len(worst.near), "count"),
        "sure_tokens": (worst.sure, "count"),
        "equal_tokens_share": (round(worst.equal / worst.tokens, 4) if worst.tokens else None, ""),
        "logprob_difference_nats": (
            max((round(each.mean_nats, 4) for each in found if each.mean_nats is not None), default=None),
            "nats",
        ),
    }
    return {name: Measurement(value, unit) for name, (value, unit) in numbers.items() if value is not None}


def expected(series: Sequence[Answers], prompt: str, contains: str) -> Judgement:
    """The answer to ``prompt`` has ``contains`` in it, upper or lower case, in every asking."""
    missing = None
    for each in series:
        answer = each.of(f"{EXPECTED}{prompt}")
        if answer is None:
            missing = missing or f"{_when(each)}: {each.why or 'it was not asked'}"
        elif contains.casefold() not in answer.text.casefold():
            return Judgement(
                verdict="fail",
                message=f"{_when(each)}: {prompt!r} was continued with {answer.text!r}, in which there is no {contains!r}",
                quantity="expected_text",
                measured={"expected_text": Measurement(answer.text, "")},
                limit=Limit("==", contains, ""),
                cause=cause(series),
            )
    if missing is not None:
        return inconclusive(f"whether {prompt!r} is continued with {contains!r} is not known ({missing})", "no answers")
    return Judgement(verdict="pass", message=f"{contains!r} follows {prompt!r}")


def cause(series: Sequence[Answers]) -> str | None:
    """What differs between the askings whose answers differ, and so where to look."""
    first = reference_of(series)
    if first is None:
        return None
    series = series[series.index(first) :]
    if any(each.after == AGAIN and judge.compare(before, each).changed for before, each in pairwise(series)):
        return (
            "one and the same start answers differently when it is asked twice, so it is not the compile caches: wrong sums between "
            "the cards (peer to peer, NVLink: NCCL_P2P_DISABLE=1 tells), unstable memory or clocks"
        )
    changed = {each.after: judge.compare(series[0], each).changed for each in series[1:] if not each.why}
    warm, cold = changed.get("warm restart"), changed.get("cold start")
    if cold and warm is False:
        return "freshly compiled kernels answer differently from those in the caches as found: one of them is wrong, probably the stored ones"
    if warm and cold is False:
        return "freshly compiled kernels answer as before: what a restart takes from the compile caches is stale or damaged (set it aside)"
    if warm or cold or any(changed.values()):
        return "the start changed it: kernels in the compile caches, weights or libraries on disk are not those that the server before it used"
    return None


def _when(each: Answers) -> str:
    return {"as found": "as found", AGAIN: "asked again"}.get(each.after, f"after the {each.after}")
