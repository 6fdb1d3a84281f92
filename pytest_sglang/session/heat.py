"""Heat before a level of a sweep is measured: levels are compared with one another, so none may be measured on colder cards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.session.deployment import Deployment

LOOK_S = 5.0
MOST_S = 30.0
"""A card under load settles in minutes; the fast part of it is over by then, and --sglang-level=3 waits for the rest."""
RISE_C = 1.0
"""A card that warms up by no more than this in 5 s is warm enough to be compared."""


def until_steady(deployment: Deployment, window: EnergyWindow, warm_up: Callable[[str], bool]) -> float:
    """Decode (``warm_up`` is one round) until the warmest serving card rises by at most 1 °C in 5 s, for 5 to 30 s; gives the seconds.

    Where no temperature can be read it is 5 s.
    """
    cards = [card.uuid for card in deployment.hardware.serving] if deployment.hardware is not None else []
    began = time.monotonic()
    before = window.temperature_at(time.time(), cards)
    while True:
        looked = time.monotonic()
        while time.monotonic() - looked < LOOK_S:
            shown = "" if before is None else f", warmest card at {before:g} °C"
            if not warm_up(f"heating before this level is measured{shown}"):
                return time.monotonic() - began  # a server that fails heats nothing
        now = window.temperature_at(time.time(), cards)
        lasted = time.monotonic() - began
        if before is None or now is None or now - before <= RISE_C or lasted >= MOST_S:
            return lasted
        before = now
