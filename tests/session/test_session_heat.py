"""Warming up ends where the server fails: nothing gets warm, and the first round tells why."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from pytest_sglang.session import heat, window


def test_heating_ends_with_the_first_failed_round() -> None:
    told: list[str] = []

    def warm_up(text: str) -> bool:
        told.append(text)
        return False

    deployment: Any = SimpleNamespace(hardware=None)
    seen: Any = SimpleNamespace(temperature_at=lambda *_: 40.0)
    began = time.monotonic()
    heat.until_steady(deployment, seen, warm_up)
    assert len(told) == 1
    assert time.monotonic() - began < heat.LOOK_S


def test_a_soak_ends_with_the_first_failed_round() -> None:
    rounds: list[int] = []
    session: Any = SimpleNamespace(
        _warmed=7,
        deployment=SimpleNamespace(progress=lambda _: None),
        one_round=lambda index: rounds.append(index) or SimpleNamespace(failures=("no connection",)),
    )
    session.warm_up = lambda told: window._Session.warm_up(session, told)
    began = time.monotonic()
    window._Session.soak(session, 300.0)
    assert rounds == [7]
    assert time.monotonic() - began < 60.0
