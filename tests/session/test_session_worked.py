"""What the cards did over a load: shares of the time that was read, over rounds with and without readings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.gpu.integral import ReasonsHeld
from pytest_sglang.judge.throttling import throttling
from pytest_sglang.session import worked


def card_over(*rounds: tuple[float, ReasonsHeld | None]) -> Any:
    """One card over rounds of so many seconds, with what was read in each (None = nothing)."""
    made, read, begin_s = [], {}, 0.0
    for number, (seconds, held) in enumerate(rounds):
        made.append(SimpleNamespace(index=number, begin_s=begin_s, end_s=begin_s + seconds))
        read[begin_s] = {} if held is None else {"GPU-0": held}
        begin_s += seconds
    window: Any = SimpleNamespace(
        reasons_held=lambda begin_s, _: read[begin_s], slow=lambda *_: {}, missing={}, failure="the power sampler ended"
    )
    card: Any = SimpleNamespace(uuid="GPU-0", index=0, limits=lambda: SimpleNamespace(enforced_w=250.0))
    return worked._worked(window, card, made, {}, None)


def test_rounds_without_readings_do_not_dilute_what_held_a_card() -> None:
    """One round in five was hot for 12 % of its time: 4 % of all five would have passed."""
    hot = ReasonsHeld(10.0, {"hw_thermal_slowdown": 1.2, "sw_power_cap": 8.8})
    blind = card_over((10.0, hot), (6.0, None))
    assert blind.reasons["hw_thermal_slowdown"] == pytest.approx(0.12)
    assert blind.known_s == 10.0
    assert throttling([blind]).verdict == "fail"


def test_too_few_readings_are_inconclusive() -> None:
    calm = ReasonsHeld(3.0, {"hw_thermal_slowdown": 0.0, "sw_power_cap": 3.0})
    judged = throttling([card_over((3.0, calm), (3.0, None), (3.0, None))])
    assert (judged.verdict, "read for 3.0 s of 9.0 s only" in judged.message) == ("inconclusive", True)
    nothing = throttling([card_over((3.0, None))])
    assert (nothing.verdict, "the power sampler ended" in nothing.message) == ("inconclusive", True)
