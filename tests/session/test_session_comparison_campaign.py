"""Whole comparisons of simulated run records, in small what benchmarks/regression does with a thousand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "regression"


@pytest.fixture(scope="module")
def campaign() -> Iterator[Any]:
    """Module ``records`` of benchmarks/regression."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("records")
    finally:
        sys.path.remove(str(FOLDER))


def test_thirteen_quantities_raise_no_alarm_among_equals_and_a_loss_is_found(campaign: Any) -> None:
    found = campaign.case(11, 0.005, 25, 0.03)
    assert found["judged_quantities"] == 13
    assert found["equal"].get("fail", 0.0) <= 0.04
    assert found["equal"]["pass"] >= 0.8
    assert found["loss_found"] >= 0.92
    assert found["lost"].get("pass", 0.0) == 0.0
