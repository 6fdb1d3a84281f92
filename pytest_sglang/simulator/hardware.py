"""What the simulated hardware is: cards, links, speed under a power cap, from ``rigs/<name>.toml``."""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RIGS = Path(__file__).parent / "rigs"


SLOWDOWN_C = 93.0
"""A 3090 lowers its clocks from this temperature on (its target temperature)."""
SLOWED = 0.75
"""Share of its speed that a too hot card keeps."""


@dataclass(frozen=True)
class Trait:
    """What one card has of its own: a limit that it does not go beyond, hotter air, the speed that an outside brake leaves it,
    and how long after the begin of a load its energy counter is lost."""

    clamp_w: float = math.inf
    hotter_c: float = 0.0
    brake: float = 1.0
    reset_after_s: float = math.inf


@dataclass(frozen=True)
class Gpu:
    """One kind of card; watts, MHz, MiB, degrees Celsius."""

    name: str
    count: int
    min_w: float
    max_w: float
    default_w: float
    present_w: float
    idle_w: float
    persistence: bool
    pcie_gen: int
    pcie_width: int
    memory_mib: int
    cores: int
    compute_capability: tuple[int, int]
    vbios: str
    pci_device_id: int
    pci_subsystem_id: int
    first_bus: int
    clock_sm_idle_mhz: int
    clock_sm_max_mhz: int
    clock_mem_idle_mhz: int
    clock_mem_max_mhz: int
    ambient_c: float

    def loaded_w(self, index: int, limit_w: float, load: float) -> float:
        """Board power at ``load`` (0 idle, 1 decoding) under a limit; a decoding card stays just below its limit, no two alike."""
        idle_w = self.idle_w * (1.0 + 0.03 * (index % 4))
        return idle_w + load * (limit_w * (0.985 - 0.0025 * (index % 4)) - idle_w)

    def steady_c(self, index: int, watts: float) -> float:
        """Temperature that a card reaches after minutes at ``watts``; inner cards run hotter."""
        return self.ambient_c + 0.115 * watts + 1.5 * (index % 3)


@dataclass(frozen=True)
class Curve:
    """Decode speed of one stream without NVLink, and the SM clock, by power limit."""

    limit_w: tuple[float, ...]
    decode_tok_s: tuple[float, ...]
    sm_mhz: tuple[float, ...]
    nvlink_gain: float
    plateau_w: tuple[float, ...] = ()
    """Where a decoding card draws no more although its limit allows it: the draw there, and up to which limit; empty = nowhere."""

    def tok_s(self, limit_w: float) -> float:
        """Tokens per second of one stream at ``limit_w``, linear between the published points."""
        return interpolate(self.limit_w, self.decode_tok_s, limit_w)

    def drawn_w(self, limit_w: float) -> float:
        """The limit that really binds: on the plateau the card stops below its own."""
        if self.plateau_w and self.plateau_w[0] < limit_w <= self.plateau_w[1]:
            return self.plateau_w[0]
        return limit_w

    def mhz(self, limit_w: float) -> int:
        """SM clock while decoding at ``limit_w``."""
        return 15 * round(interpolate(self.limit_w, self.sm_mhz, limit_w) / 15)


@dataclass(frozen=True)
class Hardware:
    """A whole rig."""

    name: str
    driver: str
    cuda: int
    gpu: Gpu
    pairs: tuple[tuple[int, int], ...]
    links: int
    bridges: tuple[tuple[int, int], ...]
    serving: tuple[int, ...]
    curve: Curve

    def bus_id(self, index: int) -> str:
        """PCI bus id as NVML writes it: ``00000000:01:00.0``."""
        return f"00000000:{self.gpu.first_bus + index:02X}:00.0"

    def partner(self, index: int) -> int | None:
        """The card at the other end of this card's bridge."""
        for one, other in self.pairs:
            if index in (one, other):
                return other if index == one else one
        return None

    def serving_pairs(self) -> tuple[tuple[int, int], ...]:
        """Bridged pairs that lie wholly inside the serving cards."""
        return tuple(pair for pair in self.pairs if set(pair) <= set(self.serving))


def interpolate(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """``y`` at ``at``, linear between the points and constant beyond them."""
    if at <= x[0]:
        return y[0]
    if at >= x[-1]:
        return y[-1]
    right = bisect_right(x, at)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


def names() -> tuple[str, ...]:
    """Packaged hardware."""
    return tuple(sorted(path.stem for path in RIGS.glob("*.toml")))


def load(name: str) -> Hardware:
    """The packaged hardware ``name``. Raises ValueError naming the known ones."""
    path = RIGS / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"no simulated hardware {name!r} (there is {', '.join(names())})")
    raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    gpu = raw["gpu"] | {"compute_capability": tuple(raw["gpu"]["compute_capability"])}
    curve: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw["curve"].items()}
    return Hardware(
        name=name,
        driver=raw["host"]["driver"],
        cuda=raw["host"]["cuda"],
        gpu=Gpu(**gpu),
        pairs=tuple((a, b) for a, b in raw["nvlink"]["pairs"]),
        links=raw["nvlink"]["links"],
        bridges=tuple((a, b) for a, b in raw["host"]["numa_pairs"]),
        serving=tuple(raw["server"]["gpus"]),
        curve=Curve(**curve),
    )
