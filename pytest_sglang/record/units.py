"""Quantities: text with a unit at the edges, plain SI numbers inside.

``parse("90 s", "s") == 90.0`` and ``parse(90, "s") == 90.0``: a bare number is in the unit of its key.
Rule of the house: a number has its unit in its name (``ready_s``, ``mean_w``); text with units exists only where a person
writes or reads it.
"""

from __future__ import annotations

import math
import re

# unit family -> {spelling: factor to the family's own unit}
_FAMILIES: dict[str, dict[str, float]] = {
    "s": {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0},
    "ms": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1000.0, "sec": 1000.0, "min": 60000.0},
    "tok/s": {"tok/s": 1.0, "tokens/s": 1.0, "t/s": 1.0},
    "W": {"w": 1.0, "kw": 1000.0, "mw": 1e-3},
    "J/token": {"j/token": 1.0, "j/tok": 1.0},
    "%": {"%": 1.0, "percent": 1.0},
}
_EXAMPLES = {
    "s": "'250 ms', '90 s', '25 min'",
    "ms": "'80 ms', '0.5 s'",
    "tok/s": "'38 tok/s'",
    "W": "'250 W'",
    "J/token": "'25 J/token'",
    "%": "'15 %'",
}
_QUANTITY = re.compile(r"\s*(?:>=|<=|>|<|=)?\s*([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([^\s\d].*?)?\s*")


class UnitError(ValueError):
    """Text that is not a quantity of the asked kind; the message shows a right one."""


def parse(value: object, unit: str) -> float:
    """The number of ``unit`` in ``value``: text with a unit ("25 min") or a number already in ``unit``.

    A leading comparison sign is allowed and ignored ("``>= 15 %``"). Raises UnitError naming a right example.
    """
    wrong = UnitError(f"not {_article(unit)}: {value!r} (write e.g. {_EXAMPLES[unit]})")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None:
            raise wrong
        factor = 1.0
        if match[2] is not None:
            # "mW" and "MW" differ by case only; nobody promises megawatts, so the lower-case reading is the safe one
            key = " ".join(match[2].split()).lower().replace(" / ", "/")
            if key not in _FAMILIES[unit]:
                raise wrong
            factor = _FAMILIES[unit][key]
        number = float(match[1]) * factor
    else:
        number = float(value)
    if not math.isfinite(number):
        raise wrong
    return number


def _article(unit: str) -> str:
    return {
        "s": "a duration",
        "ms": "a duration",
        "tok/s": "a token rate",
        "W": "a power",
        "J/token": "an energy per token",
        "%": "a percentage",
    }[unit]


def example(unit: str) -> str:
    """A right example for error messages: ``example("s") == "'250 ms', '90 s', '25 min'"``."""
    return _EXAMPLES[unit]


def show(number: float, unit: str) -> str:
    """``number`` of ``unit`` as a person reads it: ``show(1320, "s") == "22 min 00 s"``, ``show(38.61, "tok/s") == "38.6 tok/s"``."""
    if unit == "s":
        return duration(number)
    if unit == "":
        return f"{number:g}"
    if unit == "tok/s/W":
        return f"{number:.4f} {unit}"
    if unit == "MHz" or (unit == "%" and number == 0):
        return f"{number:.0f} {unit}"
    # a power limit is whole watts and is shown so, but 0.03 W is not nothing
    whole_w = unit == "W" and abs(number - round(number)) < 0.05 and (round(number) != 0 or number == 0)
    digits = 0 if abs(number) >= 1000 or whole_w else 1 if abs(number) >= 10 else 2
    return f"{number:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds for a person: "0.35 s", "81.3 s", "22 min 04 s", "3 h 05 min"."""
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 10:
        return f"{sign}{seconds:.2f} s"
    if seconds < 119.95:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600 * 2:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    return f"{sign}{whole // 3600} h {whole % 3600 // 60:02d} min"
