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
    Fault(
        "cache-upgraded",
        "Triton is upgraded from 3.6.0 to 3.7.0 before the next start: nothing in the caches fits",
        of_a_start=True,
    ),
    Fault(
        "cache-flags-changed",
        "the next start has --torch-compile-max-bs 8 instead of 4: kernels for it are compiled",
        of_a_start=True,
    ),
    Fault("cache-relocated", "the next start is given other cache directories, which are empty", of_a_start=True),
    Fault("cache-unused", "the next start does not use the caches (TORCHINDUCTOR_FORCE_DISABLE_CACHES=1)", of_a_start=True),
    Fault("cache-autotune-lost", "the tuning results vanish when the server stops, the kernels stay", of_a_start=True),
    Fault("cache-graphs-lost", "the fx graph and AOT autograd caches vanish when the server stops", of_a_start=True),
    Fault("cache-late", "kernels are compiled at the first requests after the server is ready", of_a_start=True),
    Fault("cache-in-tmp", "Inductor's cache is in /tmp, which systemd-tmpfiles empties at boot"),
    Fault("cache-private-tmp", "Inductor's cache is in the unit's own /tmp (PrivateTmp=yes), which goes at every stop"),
    Fault("cache-in-memory", "the caches are on a tmpfs"),
    Fault("cache-aged", "a rule of systemd-tmpfiles removes what nobody touched for 10 days from the caches"),
    Fault("cache-in-container-layer", "the caches are in a container's own layer, without a volume"),
    Fault("cache-other-owner", "the unit runs as a user who does not own the caches"),
    Fault("cache-read-only", "the caches' file system is mounted read-only"),
    Fault("cache-little-space", "a disk quota leaves 0.5 GiB to the server's user"),
    Fault("cache-moved", "the caches were moved here from another directory: group files point to the old one"),
    Fault("cache-incomplete", "a cubin is missing although its group file names it"),
    Fault("cache-broken", "one cubin is cut off, one is empty, one entry's metadata are no JSON"),
    Fault("cache-leftover", "a killed compiler left unfinished files"),
    Fault("cache-duplicate", "Inductor's own tree holds kernels a second time"),
    Fault("cache-stale", "kernels of Triton 3.5.1 and of sm_90 are in the caches"),
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
