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
    """What one card has of its own: a limit that it does not go beyond, its temperature when idle (None = as its kind), the speed
    that an outside brake leaves it, how long after the begin of a load its energy counter is lost, and its share of the load."""

    clamp_w: float = math.inf
    idle_c: float | None = None
    brake: float = 1.0
    reset_after_s: float = math.inf
    works: float = 1.0


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
    brand: int = 5
    architecture: int = 7
    memory_bus_bits: int = 384
    c_per_w: float = 0.115
    """Degrees above the ambient temperature for each watt, once the card has settled."""
    mem_step_mhz: int = 250
    """A compute load holds a GeForce card in P2, one memory step below its highest."""
    ecc: bool = False
    """Counts memory errors and remaps rows, as data centre cards do."""
    unsupported: tuple[str, ...] = ()
    """NVML calls that these cards answer with NotSupported, beyond what a GeForce card does not have."""

    def loaded_w(self, index: int, limit_w: float, load: float) -> float:
        """Board power at ``load`` (0 idle, 1 decoding) under a limit; a decoding card stays just below its limit, no two alike."""
        idle_w = self.idle_w * (1.0 + 0.03 * (index % 4))
        return idle_w + load * (limit_w * (0.985 - 0.0025 * (index % 4)) - idle_w)

    def steady_c(self, index: int, watts: float) -> float:
        """Temperature that a card reaches after minutes at ``watts``; inner cards run hotter."""
        return self.ambient_c + self.c_per_w * watts + 1.5 * (index % 3)


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
class Resident:
    """A process that works on a card all the time, whoever serves: a display server, say. ``kind``: graphics or compute."""

    gpu: int
    pid: int
    name: str
    kind: str
    used_mib: int


@dataclass(frozen=True)
class Hardware:
    """A whole rig.

    ``meets``: groups of cards by where they meet (PIX, PXB, PHB, NODE), the nearest first; cards of no common group meet over SYS.
    ``switch``: every card's links go to NVSwitches, and ``pairs`` is empty. ``links``: links a pair, or a card on switches.
    """

    name: str
    driver: str
    cuda: int
    gpu: Gpu
    pairs: tuple[tuple[int, int], ...]
    switch: bool
    links: int
    link_mbyte_s: int
    link_version: int
    meets: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    residents: tuple[Resident, ...]
    serving: tuple[int, ...]
    curve: Curve

    def meeting(self, one: int, other: int) -> str:
        """Where two cards meet, as ``nvidia-smi topo -m`` prints it."""
        for level, groups in self.meets:
            if any({one, other} <= set(group) for group in groups):
                return level
        return "SYS"

    def bus_id(self, index: int) -> str:
        """PCI bus id as NVML writes it: ``00000000:01:00.0``."""
        return f"00000000:{self.gpu.first_bus + index:02X}:00.0"


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


MEETINGS = ("PIX", "PXB", "PHB", "NODE")
"""From the nearest to the farthest; what has none of them in common meets over SYS."""


def load(name: str) -> Hardware:
    """The packaged hardware ``name``, or that of the TOML file at the path ``name``.

    Raises ValueError naming the known ones, or the place in the file that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else RIGS / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"no simulated hardware {name!r} (there is {', '.join(names())}, or the path of a .toml file like theirs)")
    try:
        return parse(str(path) if name.endswith(".toml") else name, tomllib.loads(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing (see {RIGS / 'six-3090.toml'})") from None
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error} (see {RIGS / 'six-3090.toml'})") from None


def parse(name: str, raw: dict[str, Any]) -> Hardware:
    """Hardware from a TOML's tables. Raises KeyError or TypeError for a key too few or too many, ValueError for a card too many."""
    gpu, curve = Gpu(**_tuples(raw["gpu"])), _tuples(raw["curve"])
    link = raw.get("nvlink", {})
    meets = tuple((level, tuple(map(tuple, raw.get("meets", {}).get(level, [])))) for level in MEETINGS)
    made = Hardware(
        name=name,
        driver=raw["host"]["driver"],
        cuda=raw["host"]["cuda"],
        gpu=gpu,
        pairs=tuple((a, b) for a, b in link.get("pairs", [])),
        switch=link.get("switch", False),
        links=link.get("links", 0),
        link_mbyte_s=link.get("mbyte_s", 14_062),
        link_version=link.get("version", 5),
        meets=meets,
        residents=tuple(Resident(**each) for each in raw.get("residents", [])),
        serving=tuple(raw["server"]["gpus"]),
        curve=Curve(**curve),
    )
    used = {*made.serving, *(end for pair in made.pairs for end in pair), *(each.gpu for each in made.residents)}
    if used and max(used) >= gpu.count:
        raise ValueError(f"{name}: there is no GPU {max(used)}: gpu.count is {gpu.count}")
    return made


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
