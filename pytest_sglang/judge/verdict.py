"""What a limit answers: pass, fail or inconclusive, with measured value, limit, same unit, and the most likely cause."""

from __future__ import annotations

from pytest_sglang.record.run import Limit, Measurement, Verdict
from pytest_sglang.record.values import Finding, Value


class Judgement(Value, frozen=True, kw_only=True):
    """A verdict with its reasons. ``message`` reads "measured, limit, cause" in one line.

    ``marginal``: undecided, but within the tolerance of the limit: counts as pass with a warning, or inconclusive when strict.
    """

    verdict: Verdict
    message: str
    quantity: str | None = None
    measured: dict[str, Measurement] = {}
    limit: Limit | None = None
    cause: str | None = None
    marginal: bool = False
    inconclusive_because: str | None = None
    findings: tuple[Finding, ...] = ()


def inconclusive(message: str, because: str | None = None) -> Judgement:
    """Could not be measured, and why."""
    return Judgement(verdict="inconclusive", message=message, inconclusive_because=because or message)


def combine(judgements: list[Judgement]) -> Judgement:
    """Several limits on one check: fail beats inconclusive beats marginal beats pass; the worst one speaks, all are measured."""
    if not judgements:
        return Judgement(verdict="inconclusive", message="nothing was measured", inconclusive_because="nothing was measured")
    rank = {"fail": 0, "inconclusive": 1, "pass": 3}
    worst = min(judgements, key=lambda each: rank[each.verdict] - (1 if each.marginal and each.verdict == "pass" else 0))
    measured = {name: value for each in judgements for name, value in each.measured.items()}
    findings = tuple(finding for each in judgements for finding in each.findings)
    others = [each.message for each in judgements if each.verdict == worst.verdict and each is not worst and each.verdict != "pass"]
    return Judgement(
        verdict=worst.verdict,
        message="; ".join([worst.message, *others]),
        quantity=worst.quantity,
        measured=measured,
        limit=worst.limit,
        cause=worst.cause,
        marginal=any(each.marginal for each in judgements),
        inconclusive_because=worst.inconclusive_because,
        findings=findings,
    )
