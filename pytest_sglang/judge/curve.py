"""Speed and energy over power caps: where more watts bring nothing, which cap costs least per token, which is nearly as fast. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pytest_sglang.record.values import Value

FLAT = 0.01
"""From one cap to the next a gain below this share is none: rates of one boot vary by some per cent."""
EARLIER = "earlier"


class Point(Value, frozen=True, kw_only=True):
    """One measured power level: rates in tokens per second, board power of all serving cards in watts (not the wall).

    ``held_by``: what limited the clocks, for a person; ``faulty``: heat or a brake did, so it is not this cap's speed.
    ``min_tok_s`` and ``target_tok_s``: the promise at this level, None = no promise. ``run_id``: where it was measured.
    """

    power_w: float
    tok_s: float
    ci_low: float | None = None
    ci_high: float | None = None
    j_per_token: float | None = None
    mean_w: float | None = None
    tok_s_per_w: float | None = None
    sm_mhz: float | None = None
    end_c: float | None = None
    held_by: str = ""
    cap_pct: float | None = None
    faulty: bool = False
    min_tok_s: float | None = None
    target_tok_s: float | None = None
    run_id: str = ""


class Curve(Value, frozen=True, kw_only=True):
    """What the points say. Caps in watts; None = not known. ``plateaus``: from and to.

    ``suggested_w`` is the lowest cap within ``max_slowdown_pct`` of the fastest; ``suggested_surely``: its whole interval is.
    ``efficient_at_edge``: no lower cap was measured, one may be cheaper still.
    """

    points: tuple[Point, ...]
    plateaus: tuple[tuple[float, float], ...] = ()
    fastest_w: float | None = None
    efficient_w: float | None = None
    efficient_at_edge: bool = False
    suggested_w: float | None = None
    suggested_surely: bool = False
    max_slowdown_pct: float = 5.0


def analyse(points: Sequence[Point], max_slowdown_pct: float = 5.0) -> Curve:
    """The curve of these points, one a cap; faulty ones are shown and decide nothing."""
    ordered = tuple(sorted(points, key=lambda each: each.power_w))
    sound = [each for each in ordered if not each.faulty]
    if len(sound) < 2:
        return Curve(points=ordered, max_slowdown_pct=max_slowdown_pct)
    fastest = max(sound, key=lambda each: each.tok_s)
    floor = 1 - max_slowdown_pct / 100
    suggested = next(each for each in sound if each.tok_s >= floor * fastest.tok_s)
    priced = [each for each in sound if each.j_per_token is not None]
    efficient = min(priced, key=lambda each: each.j_per_token or 0.0, default=None)
    return Curve(
        points=ordered,
        plateaus=_plateaus(sound),
        fastest_w=fastest.power_w,
        efficient_w=None if efficient is None else efficient.power_w,
        efficient_at_edge=efficient is not None and efficient is sound[0],
        suggested_w=suggested.power_w,
        suggested_surely=suggested is fastest or _surely(suggested, fastest, floor),
        max_slowdown_pct=max_slowdown_pct,
    )


def _surely(suggested: Point, fastest: Point, floor: float) -> bool:
    low, high = suggested.ci_low, fastest.ci_high
    return low is not None and high is not None and low >= floor * high


def _plateaus(sound: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    """Stretches of caps over which no step to the next one is faster, nor all of them together."""
    found: list[tuple[Point, Point]] = []
    for one, other in pairwise(sound):
        begin = found[-1][0] if found and found[-1][1] is one else one
        if other.tok_s < (1 + FLAT) * begin.tok_s:
            if begin is not one:
                found.pop()
            found.append((begin, other))
        elif begin is not one and other.tok_s < (1 + FLAT) * one.tok_s:
            found.append((one, other))
    return tuple((begin.power_w, end.power_w) for begin, end in found)


def merged(now: Sequence[Point], earlier: Sequence[Point]) -> tuple[Point, ...]:
    """This run's points, and for caps that it did not measure the newest earlier ones (``earlier`` oldest first)."""
    by_level = {each.power_w: each for each in earlier}
    by_level.update({each.power_w: each for each in now})
    return tuple(by_level.values())


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Points may stand in one curve only where engine, model, cards, NVLink, workload and whatever else is in the key are equal."""
    return dict(one) == dict(other)
