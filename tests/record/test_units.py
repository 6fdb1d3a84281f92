"""Text with a unit at the edge, one plain number inside."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sglang.record import units
from pytest_sglang.record.units import UnitError, parse, show


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("250 ms", "s", 0.25),
        ("90 s", "s", 90.0),
        ("90s", "s", 90.0),
        ("25 min", "s", 1500.0),
        ("1.5 h", "s", 5400.0),
        ("2 d", "s", 172800.0),
        ("40 µs", "s", 4e-5),
        (90, "s", 90.0),
        ("90", "s", 90.0),
        ("0.5 s", "ms", 500.0),
        ("80 MS", "ms", 80.0),
        ("38 tok/s", "tok/s", 38.0),
        ("38 tokens / s", "tok/s", 38.0),
        (">= 38 tok/s", "tok/s", 38.0),
        ("250 W", "W", 250.0),
        ("0.25 kW", "W", 250.0),
        ("250000 mW", "W", 250.0),
        (">= 15 %", "%", 15.0),
        ("15percent", "%", 15.0),
        ("30 J/token", "J/token", 30.0),
        ("1e3 W", "W", 1000.0),
        ("-2 s", "s", -2.0),
    ],
)
def test_quantities_are_read(text: object, unit: str, number: float) -> None:
    assert parse(text, unit) == pytest.approx(number)


@pytest.mark.parametrize(
    "value", ["", "s", "90 sek", "90 W", "90 s s", True, None, [90], "nan", float("nan"), math.inf, "1e999 s", "9 0 s"]
)
def test_anything_else_is_refused_with_a_right_example(value: object) -> None:
    with pytest.raises(UnitError) as caught:
        parse(value, "s")
    assert str(caught.value) == f"not a duration: {value!r} (write e.g. '250 ms', '90 s', '25 min')"


@pytest.mark.parametrize("unit", ["s", "ms", "tok/s", "W", "J/token", "%"])
def test_every_example_is_right(unit: str) -> None:
    for example in units.example(unit).split(", "):
        assert parse(example.strip("'"), unit) > 0


SPELLED = [
    ("s", ("us", "µs", "ms", "s", "sec", "min", "m", "h", "d")),
    ("ms", ("us", "ms", "s", "min")),
    ("tok/s", ("tok/s", "tokens/s", "t/s")),
    ("W", ("W", "kW", "mW")),
    ("J/token", ("J/token", "J/tok")),
    ("%", ("%", "percent")),
]


@given(
    number=st.floats(0, 1e9, allow_nan=False),
    family=st.sampled_from(SPELLED),
    data=st.data(),
    gap=st.sampled_from(["", " ", "  "]),
)
def test_text_and_factor_round_trip(number: float, family: tuple[str, tuple[str, ...]], data: st.DataObject, gap: str) -> None:
    unit, spellings = family
    spelling = data.draw(st.sampled_from(spellings))
    factor = parse(f"1 {spelling}", unit)
    assert parse(f"{number!r}{gap}{spelling}", unit) == pytest.approx(number * factor)
    assert parse(f" >= {number!r}{gap}{spelling} ", unit) == parse(f"{number!r} {spelling}", unit)


@given(number=st.floats(1e-3, 1e7), unit=st.sampled_from(["tok/s", "W", "J/token", "%", "ms"]))
def test_what_is_shown_reads_back_as_the_same_number_within_its_digits(number: float, unit: str) -> None:
    assert parse(show(number, unit), unit) == pytest.approx(number, rel=0.05, abs=0.005)


@given(st.text(max_size=20))
def test_no_text_crashes_the_reader(text: str) -> None:
    for unit in ("s", "tok/s", "W", "%"):
        try:
            number = parse(text, unit)
        except UnitError:
            continue
        assert math.isfinite(number)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.351, "0.35 s"),
        (9.999, "10.00 s"),
        (81.3, "81.3 s"),
        (119.94, "119.9 s"),
        (119.96, "2 min 00 s"),
        (1320, "22 min 00 s"),
        (1324.4, "22 min 04 s"),
        (7199, "119 min 59 s"),
        (11100, "3 h 05 min"),
        (-81.3, "-81.3 s"),
    ],
)
def test_durations_as_a_person_reads_them(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text
    assert show(seconds, "s") == text


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (38.61, "tok/s", "38.6 tok/s"),
        (5.123, "tok/s", "5.12 tok/s"),
        (1234.5, "tok/s", "1234 tok/s"),
        (250.0, "W", "250 W"),
        (250.4, "W", "250.4 W"),
        (3, "", "3"),
        (0.25, "", "0.25"),
    ],
)
def test_numbers_as_a_person_reads_them(number: float, unit: str, text: str) -> None:
    assert show(number, unit) == text
