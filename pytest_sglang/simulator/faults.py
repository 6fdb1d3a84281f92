"""Faults that a simulated rig can have: each is one thing that goes wrong on real rigs, and one check must notice it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Fault:
    """``of_a_start``: acts from the rig's second start on, so that the rig is found warm and serving; else from the beginning."""

    name: str
    summary: str
    of_a_start: bool = False


SERVER = (
    Fault("never-ready", "the next starts hang inside graph capture: no log, no CPU, no cache file, no port", of_a_start=True),
    Fault("dies-loading", "the next starts run out of GPU memory while they load weights", of_a_start=True),
    Fault("wrong-model", "another model is served than the promised one"),
    Fault("sigterm-ignored", "the server does not end on SIGTERM: its unit kills it when the stop time-out (5 s) is over"),
    Fault("orphaned-scheduler", "a stop ends the main process alone: its scheduler survives re-parented and keeps the GPU memory"),
    Fault("early-stop", "every generation ends three tokens early, although ignore_eos is set"),
)
"""In the server's life and in its answers."""

HARDWARE = (
    Fault("slow-decode", "decoding is 20 % slower, nothing else differs"),
    Fault("power-limit-lost", "GPU 2 falls back to its default power limit, at the beginning and within 1 s of any set"),
    Fault("nvlink-dead", "every link between GPU 2 and GPU 3 is inactive, and decoding loses what NVLink gains"),
)
"""In cards, power, links, driver."""

CACHES = (
    Fault("cache-cold", "the compile caches are emptied whenever the server stops, as PrivateTmp=yes would", of_a_start=True),
)
"""In compile caches."""

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*SERVER, *HARDWARE, *CACHES)}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """These names. Raises ValueError for an unknown one, naming the nearest known."""
    names = tuple(names)
    for name in names:
        if name not in FAULTS:
            near = get_close_matches(name, FAULTS, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(f"no fault {name!r}{hint} (known: {', '.join(FAULTS)})")
    return names
