"""Heating before a level of a sweep: until the warmest card has settled, and no longer than half a minute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.session import heat


def heated(monkeypatch: pytest.MonkeyPatch, degrees: Any) -> tuple[float, list[str]]:
    """Seconds and what was told, with ``degrees`` as the temperature after so many seconds; a round takes 2 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(heat.time, "monotonic", lambda: clock.now)
    told: list[str] = []

    def round_of_2_s(text: str) -> None:
        told.append(text)
        clock.now += 2.0

    window: Any = SimpleNamespace(temperature_at=lambda at, cards: degrees(clock.now))
    deployment: Any = SimpleNamespace(hardware=SimpleNamespace(serving=[SimpleNamespace(uuid="a")]))
    return heat.until_steady(deployment, window, round_of_2_s), told


def test_a_card_that_is_warm_already_costs_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, told = heated(monkeypatch, lambda now: 60.0 + 0.1 * now)
    assert seconds == 6.0
    assert told[0] == "heating before this level is measured, warmest card at 60 °C"


def test_a_cold_card_is_heated_until_it_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, _ = heated(monkeypatch, lambda now: 40.0 + min(now, 14.0))
    assert seconds == 24.0


def test_half_a_minute_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, _ = heated(monkeypatch, lambda now: 40.0 + now)
    assert heat.MOST_S <= seconds < heat.MOST_S + heat.LOOK_S + 2.0


def test_without_a_temperature_it_is_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, told = heated(monkeypatch, lambda now: None)
    assert seconds == 6.0
    assert told[0] == "heating before this level is measured"
