"""Latencies of one measurement as cumulative shares: time to first token, and time between tokens, with earned percentiles and limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import stats
from pytest_sglang.judge.latency import MAX_MERGED_SHARE
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, HEIGHT = 380.0, 200.0
MOST_POINTS = 300
"""Points of a curve: more are no wider than a pixel."""
_NAMES = {"ttft_s": "TTFT (time to first token)", "itl_s": "ITL (between tokens)"}
FEWEST = 10
"""Of fewer samples there is a median, and no distribution."""


def panels(identity: str, item: dict[str, Any]) -> list[Panel]:
    """A panel for each latency that the item of ``run.throughputs`` has samples of. Raises DrawingError without matplotlib."""
    found = item["throughput"]
    rounds = [each for each in found.get("rounds") or [] if each.get("invalid_because") is None]
    out = []
    for key, name in _NAMES.items():
        samples = sorted(float(value) * 1000 for each in rounds for value in each.get(key) or ())
        heading = f"{item.get('label') or 'measurement'}, {name}"
        share = float(found.get("merged_share") or 0.0) if key == "itl_s" else 0.0
        unfair = (
            f"unsure: {100 * share:.1f} % of the token events share a read with later ones" if share > MAX_MERGED_SHARE else None
        )
        if 0 < len(samples) < FEWEST:
            told = f"Median {stats.median(samples):.3g} ms of {len(samples)} sample{'s' if len(samples) != 1 else ''}: "
            out.append(Panel(heading=heading, missing=f"{told}a distribution needs {FEWEST}."))
        elif samples:
            out.append(_panel(f"{identity}-{key[:-2]}", heading, samples, unfair))
    return out


def note(samples: Sequence[float], unfair: str | None = None) -> str:
    """Median, percentiles that the number of samples earns, and the first that it does not. ``unfair``: why none is earned."""
    told = f"{len(samples):,} samples, median {stats.median(samples):.3g} ms"
    if unfair is not None:
        return f"{told}, {unfair}"
    for q in (0.9, 0.99):
        found = stats.percentile(samples, q)
        if found.value is None:
            return f"{told}, p{q * 100:g} not earned ({found.needed} samples needed)"
        told += f", p{q * 100:g} {found.value:.3g} ms"
    return told


def _panel(identity: str, heading: str, samples: list[float], unfair: str | None = None) -> Panel:
    told = note(samples, unfair)
    places = _places(len(samples))
    # the slowest per mille would leave the curve a vertical line
    end = samples[min(len(samples) - 1, int(len(samples) * 0.999))]
    with svg.canvas(WIDTH, HEIGHT) as drawing:
        drawing.margins(44, 16, 18, 36)
        axes = drawing.axes
        axes.plot(
            [samples[place] for place in places],
            [100 * (place + 1) / len(samples) for place in places],
            color=svg.STRONG,
            drawstyle="steps-post",
        )
        known = () if unfair else (0.5, 0.9, 0.99)
        marks = [(q, found.value) for q in known if (found := stats.percentile(samples, q)).value is not None]
        for q, value in marks:
            axes.plot([value], [100 * q], marker="o", markersize=5, color=svg.STRONG, linestyle="none")
        axes.set(ylim=(0, 102), xlim=(min(samples[0], end * 0.9), end * 1.05 if end > 0 else 1.0))
        axes.set_yticks([0, 50, 90, 100])
        axes.set_xlabel("ms", labelpad=2)
        axes.text(-0.02, 1.03, "% of samples", transform=axes.transAxes, ha="left", va="bottom", color=svg.MUTED)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        picture = drawing.svg(identity=identity, title=f"Distribution: {heading}", description=told)
    hidden = sum(value > end for value in samples)
    return Panel(
        heading=heading, note=told + (f"; {hidden} slower than drawn, slowest {samples[-1]:.3g} ms" if hidden else ""), svg=picture
    )


def _places(count: int) -> list[int]:
    """Evenly over the samples, the slow end whole: that is where the eye goes."""
    if count <= MOST_POINTS:
        return list(range(count))
    step = count / (MOST_POINTS - 60)
    return sorted({*(int(place * step) for place in range(MOST_POINTS - 60) if place * step < count), *range(count - 60, count)})
