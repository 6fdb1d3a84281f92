"""Joules of a window, from samples of one card. Pure functions; board power, not the wall.

Facts (NVML on an H200, driver 580): the energy counter moves about every 100 ms, so a window's energy is its delta, its edges
interpolated; the averaged power reading climbs for more than a second after the load and reads 28 % low over the first 2 s: it
is never the basis of a window.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pytest_sglang.gpu.readings import EVENT_REASONS, reason_names
from pytest_sglang.record.values import Energy

MIN_WINDOW_S = 1.0
"""Ten steps of the energy counter: in less the edges weigh more than a tenth."""
MAX_GAP_S = 1.0
"""Longest stretch without a sample inside a window, and between a window's edge and the nearest sample beyond it."""
STANDS_S = 2.0
"""So long a slow sample stands for what limits the clocks: four of its periods."""
SERIES_POINTS = 600

TOO_SHORT = "window too short"
GAP = "sampling gap"
COUNT_CHANGED = "GPU count changed"
RESET = "counter reset"
STUCK = "counter stuck"
UNSUPPORTED = "not supported"


class Sample(NamedTuple):
    """One fast reading of one card: epoch seconds, watts (1 s average and instantaneous), joules since the driver was loaded."""

    t_s: float
    average_w: float | None
    instant_w: float | None
    energy_j: float | None


class SlowSample(NamedTuple):
    """One slow reading of one card. ``reasons``: NVML's clocks-event mask; None = not readable."""

    t_s: float
    temperature_c: int | None
    sm_mhz: int | None
    mem_mhz: int | None
    reasons: int | None
    pcie_gen: int | None
    pcie_width: int | None


def integrate(
    samples: Sequence[Sample], begin_s: float, end_s: float, *, gpu: str = "", lost_at_s: float | None = None, why_missing: str = ""
) -> Energy:
    """Energy of one card between two epoch times: by the counter, else by instantaneous power, else none with the reason.

    ``samples`` in order of time and reaching beyond both edges; ``lost_at_s``: when the card stopped answering; ``why_missing``:
    what the driver said to readings that it does not give.
    """
    window_s = end_s - begin_s
    if window_s < MIN_WINDOW_S:
        return _invalid(gpu, f"{TOO_SHORT}: {max(window_s, 0.0):.2f} s, at least {MIN_WINDOW_S:g} s")
    if lost_at_s is not None and lost_at_s <= end_s:
        return _invalid(gpu, f"{COUNT_CHANGED}: this card stopped answering")
    inside = _around(samples, begin_s, end_s)
    gap = _gap(inside, begin_s, end_s)
    if gap is not None:
        return _invalid(gpu, gap)
    peak = max((each.instant_w for each in inside if each.instant_w is not None and begin_s <= each.t_s <= end_s), default=None)
    counter = [(each.t_s, each.energy_j) for each in inside if each.energy_j is not None]
    if any(later[1] < earlier[1] for earlier, later in pairwise(counter)):
        return _invalid(gpu, f"{RESET}: the energy counter went backwards (driver reload or GPU reset)")
    # a value counts from the sample that first shows it; a counter that stands still for a second is none
    steps = [*counter[:1], *(later for earlier, later in pairwise(counter) if later[1] != earlier[1])]
    stood = _stood_still(counter, begin_s, end_s)
    if len(steps) >= 2 and stood is None:
        return _by_counter(steps, counter[-1][0], begin_s, end_s, gpu, peak)
    instant = [(each.t_s, each.instant_w) for each in inside if each.instant_w is not None]
    if len(instant) >= 2:
        return _by_power(instant, begin_s, end_s, gpu, peak)
    if stood is not None and counter:
        return _invalid(gpu, f"{STUCK}: the energy counter {stood}")
    return _invalid(
        gpu, f"{UNSUPPORTED}: neither energy counter nor instantaneous power{f' ({why_missing})' if why_missing else ''}"
    )


def _stood_still(counter: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> str | None:
    """Where in a window samples show one value for longer than MAX_GAP_S, which no card that draws power does; None = nowhere."""
    since_s, value = 0.0, None
    for t_s, joules in counter:
        if joules != value:
            since_s, value = t_s, joules
        elif t_s - since_s > MAX_GAP_S and t_s > begin_s and since_s < end_s:
            return f"stood still for more than {MAX_GAP_S:g} s, {max(since_s - begin_s, 0.0):.1f} s into the window"
    return None


def _invalid(gpu: str, why: str) -> Energy:
    return Energy(gpu=gpu, joules=None, mean_w=None, peak_w=None, invalid_because=why)


def _around(samples: Sequence[Sample], begin_s: float, end_s: float) -> Sequence[Sample]:
    """The samples of a window with enough of both neighbourhoods to see the counter step beyond each edge."""
    first = bisect_left(samples, begin_s - MAX_GAP_S, key=_time)
    return samples[first : bisect_right(samples, end_s + MAX_GAP_S, key=_time)]


def _time(sample: Sample | SlowSample) -> float:
    return sample.t_s


def _gap(inside: Sequence[Sample], begin_s: float, end_s: float) -> str | None:
    if not inside or inside[0].t_s > begin_s:
        return f"{GAP}: no sample within {MAX_GAP_S:g} s before the window"
    if inside[-1].t_s < end_s:
        return f"{GAP}: no sample within {MAX_GAP_S:g} s after the window"
    for one, other in pairwise(inside):
        apart = other.t_s - one.t_s
        if apart > MAX_GAP_S and other.t_s > begin_s and one.t_s < end_s:
            return f"{GAP}: {apart:.2f} s without a sample, {one.t_s - begin_s:.1f} s into the window"
        if apart < 0:
            return f"{GAP}: the clock was set back by {-apart:.2f} s"
    return None


def _by_counter(
    steps: list[tuple[float, float]], last_s: float, begin_s: float, end_s: float, gpu: str, peak: float | None
) -> Energy:
    """The counter's delta, interpolated between its steps at both edges.

    Whole steps would be up to a step old at each edge, and where a load begins inside the window the edges do not cancel: half a step
    of 616 W less half a step of 129 W is 8 W over 3 s, which is what the recorded decode shows (507 W by whole steps, 514 W
    interpolated, and 515 W for the same window from edges moved into steady power). The stated error is half a step at each edge:
    what the interpolation can be wrong by when the load changes inside a step.
    """
    begin_j, begin_error = _at(steps, last_s, begin_s)
    end_j, end_error = _at(steps, last_s, end_s)
    joules = end_j - begin_j
    return Energy(
        gpu=gpu,
        joules=joules,
        mean_w=joules / (end_s - begin_s),
        peak_w=peak,
        error_j=begin_error + end_error,
        source="energy counter",
    )


def _at(steps: list[tuple[float, float]], last_s: float, t_s: float) -> tuple[float, float]:
    """The counter at ``t_s`` and what that may be wrong by, in joules."""
    after = bisect_right([time for time, _ in steps], t_s)
    after = min(max(after, 1), len(steps) - 1)
    (t0, e0), (t1, e1) = steps[after - 1], steps[after]
    if t_s > t1:
        # no step was seen beyond the edge: carry the last one's power on, no further than the last sample reaches
        t_s = min(t_s, last_s)
        return e1 + (e1 - e0) / (t1 - t0) * (t_s - t1), (e1 - e0)
    return e0 + (e1 - e0) * (t_s - t0) / (t1 - t0), (e1 - e0) / 2


def _by_power(power: list[tuple[float, float]], begin_s: float, end_s: float, gpu: str, peak: float | None) -> Energy:
    """Trapezoids under instantaneous power, the edges interpolated. Error: half of each step, added as independent errors are."""
    points = [
        (begin_s, _interpolate(power, begin_s)),
        *((t, w) for t, w in power if begin_s < t < end_s),
        (end_s, _interpolate(power, end_s)),
    ]
    joules = sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points))
    error = math.sqrt(sum(((t1 - t0) * (w1 - w0) / 2) ** 2 for (t0, w0), (t1, w1) in pairwise(points)))
    return Energy(gpu=gpu, joules=joules, mean_w=joules / (end_s - begin_s), peak_w=peak, error_j=error, source="instant power")


def _interpolate(points: list[tuple[float, float]], t_s: float) -> float:
    after = min(max(bisect_right([time for time, _ in points], t_s), 1), len(points) - 1)
    (t0, v0), (t1, v1) = points[after - 1], points[after]
    if t1 == t0:
        return v1
    share = min(max((t_s - t0) / (t1 - t0), 0.0), 1.0)
    return v0 + (v1 - v0) * share


def average_w(samples: Sequence[Sample], begin_s: float, end_s: float) -> float | None:
    """What the driver's one-second average would have said over this window: shown beside the truth, never instead of it."""
    points = [(each.t_s, each.average_w) for each in samples if each.average_w is not None and begin_s <= each.t_s <= end_s]
    if len(points) < 2:
        return None
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points)) / (points[-1][0] - points[0][0])


class ReasonsHeld(NamedTuple):
    """``known_s``: seconds of a window for which what limits the clocks was read; ``held_s``: how many of them by reason."""

    known_s: float
    held_s: dict[str, float]


def reasons_held(samples: Sequence[SlowSample], begin_s: float, end_s: float) -> ReasonsHeld:
    """Seconds of the window in which each reason limited the clocks, known reasons with 0.0.

    A sample stands for the time until the next one, but for no longer than STANDS_S: what happened behind it nobody has seen.
    """
    known = 0.0
    held: dict[str, float] = dict.fromkeys(EVENT_REASONS.values(), 0.0)
    for position in range(max(bisect_right(samples, begin_s, key=_time) - 1, 0), bisect_left(samples, end_s, key=_time)):
        each = samples[position]
        until = min(samples[position + 1].t_s if position + 1 < len(samples) else end_s, each.t_s + STANDS_S)
        span = min(until, end_s) - max(each.t_s, begin_s)
        if each.reasons is None or span <= 0:
            continue
        known += span
        for name in reason_names(each.reasons):
            held[name] = held.get(name, 0.0) + span
    return ReasonsHeld(known, held)


def reason_shares(samples: Sequence[SlowSample], begin_s: float, end_s: float) -> dict[str, float]:
    """Share (0 to 1) of the time that was read in which each reason limited the clocks; empty = not readable."""
    known_s, held_s = reasons_held(samples, begin_s, end_s)
    return {name: span / known_s for name, span in held_s.items()} if known_s > 0 else {}


def nearest(samples: Sequence[SlowSample], t_s: float, within_s: float = 2.0) -> SlowSample | None:
    """The slow sample next to ``t_s``, for temperatures and clocks at the start or end of something; None = none near enough."""
    best = min(samples, key=lambda each: abs(each.t_s - t_s), default=None)
    return best if best is not None and abs(best.t_s - t_s) <= within_s else None


def series(
    samples: Mapping[str, Sequence[Sample]], begin_s: float, end_s: float, points: int = SERIES_POINTS
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Watts over time for a chart: times (epoch seconds) and watts per card, at most ``points`` of each.

    Watts of a bin are its mean of instantaneous power (averaged power where the card has no other); None = no sample in it.
    """
    inside = {
        gpu: each[bisect_left(each, begin_s, key=_time) : bisect_right(each, end_s, key=_time)] for gpu, each in samples.items()
    }
    most = max((len(each) for each in inside.values()), default=0)
    # two samples a bin: their times jitter, and an empty bin would look like a gap in the readings
    bins = max(1, min(points, most // 2))
    width = (end_s - begin_s) / bins
    if width <= 0:
        return [], {gpu: [] for gpu in samples}
    times = [round(begin_s + (position + 0.5) * width, 3) for position in range(bins)]
    watts: dict[str, list[float | None]] = {}
    for gpu, readings in inside.items():
        sums, counts = [0.0] * bins, [0] * bins
        for each in readings:
            power = each.instant_w if each.instant_w is not None else each.average_w
            if power is None:
                continue
            position = min(int((each.t_s - begin_s) / width), bins - 1)
            sums[position] += power
            counts[position] += 1
        watts[gpu] = [round(total / count, 2) if count else None for total, count in zip(sums, counts, strict=True)]
    return times, watts


def slow_series(samples: Sequence[SlowSample], times: Sequence[float], within_s: float = 1.5) -> dict[str, list[Any]]:
    """Temperature, SM clock and what held the clocks at each of ``times``, from the slow sample next to it (None: none near).

    ``held``: the weightiest reason beside idling, "gpu_idle" for an idle card, "" where nothing held it.
    """
    found: dict[str, list[Any]] = {"c": [], "mhz": [], "held": []}
    position = 0
    for t_s in times:
        while position + 1 < len(samples) and abs(samples[position + 1].t_s - t_s) <= abs(samples[position].t_s - t_s):
            position += 1
        near = samples[position] if samples and abs(samples[position].t_s - t_s) <= within_s else None
        found["c"].append(None if near is None else near.temperature_c)
        found["mhz"].append(None if near is None else near.sm_mhz)
        found["held"].append(None if near is None or near.reasons is None else _weightiest(near.reasons))
    return found


def _weightiest(mask: int) -> str:
    """Of several reasons the special one: a power brake sets "hw_slowdown" too, and heat comes with the power cap."""
    names = reason_names(mask)
    order = (
        "hw_power_brake_slowdown",
        "hw_thermal_slowdown",
        "sw_thermal_slowdown",
        "hw_slowdown",
        *(name for name in names if name not in ("sw_power_cap", "gpu_idle")),
        "sw_power_cap",
        "gpu_idle",
    )
    return next((name for name in order if name in names), "")
