"""Rounds of boots as logarithms: their mean, their noise, how far boots differ, and what a difference of two sides is worth.

Model: ln(value of round j in boot i) = level + boot_i + noise_ij (method of moments, Searle, Casella, McCulloch, "Variance
Components", 1992, 3.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_sglang.record.values import Value

ASSUMED_BOOT_SD = 0.02
"""Spread between boots (of ln rate) where no history tells: one H200 gave 232 tok/s in one boot and 225 in the next."""
Boots = Sequence[Sequence[float]]
"""One inner sequence a boot: its rounds' values, all positive."""


class Spread(Value, frozen=True, kw_only=True):
    """Standard deviation between boots of ln(value), with its degrees of freedom; ``None``: assumed, not learnt.

    ``noise_sd`` and ``noise_degrees``: the same between rounds of one boot, for a side whose single round tells no noise.
    """

    sd: float
    degrees: float | None
    noise_sd: float = 0.0
    noise_degrees: int = 0
    mean_square: float = 0.0
    """Variance between the means of boots; 0: not known."""
    explained: float = 0.0
    """What of ``mean_square`` the scatter of the rounds explains; the rest is ``sd`` squared."""


class Side(Value, frozen=True, kw_only=True):
    """One side of a comparison in logarithms. Variance of the mean = between/boots + within * share + error."""

    boots: int
    rounds: int
    mean: float
    within: float
    """Variance between rounds of a boot."""
    within_degrees: int
    share: float
    error: float = 0.0
    """Variance of the mean by what each reading itself may be wrong, beyond its scatter."""


def logs(values: Sequence[float]) -> list[float]:
    """Logarithms. Raises ValueError for a value that is not a positive number."""
    wrong = [each for each in values if not (each > 0 and math.isfinite(each))]
    if wrong:
        raise ValueError(f"a value to compare must be a positive number, not {wrong[0]}")
    return [math.log(each) for each in values]


def within(boots: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Pooled variance of rounds (logarithms) around their own boot's mean, and its degrees of freedom."""
    total, degrees = 0.0, 0
    for each in boots:
        mean = math.fsum(each) / len(each)
        total += math.fsum((value - mean) ** 2 for value in each)
        degrees += len(each) - 1
    return (total / degrees if degrees else 0.0), degrees


def learn(groups: Sequence[Boots], *, assumed_sd: float = ASSUMED_BOOT_SD) -> Spread:
    """Spread between boots out of groups of boots that should be alike (same key); groups of one boot say nothing of it.

    Raises ValueError for a value that is not positive.
    """
    between, degrees, explained = 0.0, 0, 0.0
    noise, noise_degrees = 0.0, 0
    for boots in groups:
        found = [logs(each) for each in boots if each]
        variance, freedom = within(found)
        noise, noise_degrees = noise + variance * freedom, noise_degrees + freedom
        if len(found) < 2:
            continue
        means = [math.fsum(each) / len(each) for each in found]
        middle = math.fsum(means) / len(means)
        between += math.fsum((each - middle) ** 2 for each in means)
        degrees += len(means) - 1
        if freedom:
            explained += (len(means) - 1) * math.fsum(variance / len(each) for each in found) / len(found)
    noise_sd = math.sqrt(noise / noise_degrees) if noise_degrees else 0.0
    if not degrees:
        return Spread(sd=assumed_sd, degrees=None, noise_sd=noise_sd, noise_degrees=noise_degrees)
    return Spread(
        sd=math.sqrt(max(0.0, (between - explained) / degrees)),
        degrees=float(degrees),
        noise_sd=noise_sd,
        noise_degrees=noise_degrees,
        mean_square=between / degrees,
        explained=explained / degrees,
    )


def side(boots: Boots, error_sd: float = 0.0) -> Side | None:
    """One side; None without a value. ``error_sd``: standard uncertainty of each value (of its logarithm), independent between values.

    Raises ValueError for a value that is not positive.
    """
    found = [logs(each) for each in boots if each]
    if not found:
        return None
    means = [math.fsum(each) / len(each) for each in found]
    variance, degrees = within(found)
    share = math.fsum(1 / len(each) for each in found) / len(found) ** 2
    return Side(
        boots=len(found),
        rounds=sum(len(each) for each in found),
        mean=math.fsum(means) / len(means),
        within=variance,
        within_degrees=degrees,
        share=share,
        error=error_sd**2 * share,
    )


def noise(old: Side, new: Side) -> float:
    """Standard deviation between rounds of one boot, of both sides together, each reading's own error included."""
    degrees = old.within_degrees + new.within_degrees
    scatter = (old.within * old.within_degrees + new.within * new.within_degrees) / degrees if degrees else 0.0
    return math.sqrt(scatter + max(old.error / old.share, new.error / new.share))


def variance(old: Side, new: Side, spread: Spread) -> tuple[float, float]:
    """Variance of the difference of means, and its degrees of freedom (infinite where nothing was estimated).

    Where boots tell their spread, their number decides the degrees on its own: for boots of equally many rounds that is the exact t
    test on boot means, or a stricter one. Weighing the parts (Satterthwaite) would call 2.5 % instead of 1 % of the losses that are none.
    Where these boots have more rounds than those that told it, ``_surer``.
    """
    parts = [(each.within * each.share, float(each.within_degrees)) for each in (old, new)]
    total = math.fsum(part for part, _ in parts) + old.error + new.error + spread.sd**2 * (1 / old.boots + 1 / new.boots)
    if spread.degrees is not None:
        seen = spread.mean_square * (1 / old.boots + 1 / new.boots)
        return _surer(total, seen, spread.degrees) if 0 < total < seen else (total, spread.degrees)
    weight = math.fsum(part**2 / degrees for part, degrees in parts if part and degrees)
    return total, (total**2 / weight if weight else math.inf)


def _surer(total: float, seen: float, degrees: float) -> tuple[float, float]:
    """What is known where less than the scatter of boots that was ``seen`` is claimed, because these boots have more rounds.

    The spread is then what is left of a larger number after the rounds' share was taken off, and few boots say little of it: the degrees
    shrink with the square (Satterthwaite for that difference). Never worse than to take the scatter as it was seen.
    """
    fewer = degrees * (total / seen) ** 2
    if t_value(0.99, fewer) * math.sqrt(total) < t_value(0.99, degrees) * math.sqrt(seen):
        return total, fewer
    return seen, degrees


def uncertainty(old: Side, new: Side, spread: Spread) -> tuple[float, float] | None:
    """(Variance, degrees) as above; None where a side's rounds do not tell their noise and boots do not tell it either."""
    if old.within_degrees and new.within_degrees:
        return variance(old, new, spread)
    if spread.degrees is None:
        return None
    known = old.within_degrees + new.within_degrees + spread.noise_degrees
    if not known:
        # single values everywhere: their scatter is that of earlier boots, which holds the rounds' noise already
        return spread.sd**2 * (1 / old.boots + 1 / new.boots) + old.error + new.error, spread.degrees
    pooled = old.within * old.within_degrees + new.within * new.within_degrees + spread.noise_sd**2 * spread.noise_degrees
    filled = [each if each.within_degrees else _with(each, pooled / known) for each in (old, new)]
    return variance(filled[0], filled[1], spread)


def _with(each: Side, within: float) -> Side:
    import msgspec

    return msgspec.structs.replace(each, within=within)


def t_value(confidence: float, degrees: float) -> float:
    """One-sided t value."""
    if math.isinf(degrees):
        from scipy.special import ndtri

        return float(ndtri(confidence))
    from scipy.special import stdtrit

    return float(stdtrit(degrees, confidence))


def below(score: float, degrees: float) -> float:
    """Probability that a t variable is below ``score``."""
    if math.isinf(score):
        return 0.0 if score < 0 else 1.0
    if math.isinf(degrees):
        from scipy.special import ndtr

        return float(ndtr(score))
    from scipy.special import stdtr

    return float(stdtr(degrees, score))
