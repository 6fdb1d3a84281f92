"""A step is found where it is, and not in noise."""

from __future__ import annotations

import random

import pytest

from pytest_sglang.judge import steps


def test_a_step_is_found_where_it_is() -> None:
    rng = random.Random(2)
    values = [40 * (1 + rng.gauss(0, 0.005)) for _ in range(12)] + [38 * (1 + rng.gauss(0, 0.005)) for _ in range(6)]
    found = steps.find(values)
    assert found is not None
    assert found.index == 12
    assert found.change == pytest.approx(-0.05, abs=0.01)


def test_noise_has_no_steps() -> None:
    rng = random.Random(3)
    found = sum(steps.find([40 * (1 + rng.gauss(0, 0.02)) for _ in range(20)]) is not None for _ in range(400))
    assert found <= 8


@pytest.mark.parametrize("values", [[], [40.0], [40.0] * 5, [40.0] * 20])
def test_short_and_constant_series_have_none(values: list[float]) -> None:
    assert steps.find(values) is None


def test_an_exact_step_and_one_too_small() -> None:
    found = steps.find([40.0] * 5 + [36.0] * 5)
    assert found is not None
    assert (found.index, round(found.change, 3)) == (5, -0.1)
    assert steps.find([40.0] * 5 + [39.9] * 5) is None


def test_a_value_that_is_none() -> None:
    with pytest.raises(ValueError, match="positive"):
        steps.find([1.0, 0.0, 2.0])
