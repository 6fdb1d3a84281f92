"""What a simulated rig was made as: written once, read by every process that works on it."""

from __future__ import annotations

import json
import os
import pwd
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pytest_sglang.simulator import hardware
from pytest_sglang.simulator.ailments import Ailments
from pytest_sglang.simulator.faults import FAULTS
from pytest_sglang.simulator.hardware import Hardware, Trait

NAME = "rig.json"
UNIT = "sglang.service"
MODEL = "/models/home-70b-awq"
WRONG_MODEL = "/models/home-32b-gptq"
FALLING_BACK = 2
"""The card that loses its limit under the fault power-limit-lost."""
MISPLACED = (0, 1, 2, 4)
"""The cards on which the server runs under the fault server-misplaced."""
TRAITS: dict[str, tuple[int, Trait]] = {
    "power-limit-clamped": (3, Trait(clamp_w=220.0)),
    "thermal-slowdown": (2, Trait(idle_c=92.0)),
    "power-brake": (1, Trait(brake=0.5)),
    "energy-counter-reset": (0, Trait(reset_after_s=0.7)),
    "rank-idle": (2, Trait(works=0.0)),
}
"""Cards that differ from their kind under a fault."""
UNREADABLE: dict[str, dict[int | None, tuple[str, ...]]] = {
    "energy-counter-missing": {None: ("energy",)},
    "energy-unreadable": {2: ("energy", "instant")},
}
"""Power readings that a card (None = every card) answers with Not Supported under a fault."""
NOT_PERSISTENT = 1
"""The card whose persistence mode is off under the fault persistence-off."""


@dataclass(frozen=True)
class Config:
    """``seed`` 0: noise of every run is its own."""

    directory: Path
    hardware_name: str
    uuids: tuple[str, ...]
    faults: tuple[str, ...]
    faults_at_once: bool
    speed: float
    port: int
    seed: int
    api_key: str | None
    power_permission: bool
    boot_id: str

    @property
    def hardware(self) -> Hardware:
        """The cards and what they can do."""
        found = hardware.load(self.hardware_name)
        return replace(found, serving=MISPLACED) if "server-misplaced" in self.faults else found

    @property
    def ailments(self) -> Ailments:
        """What its faults do to the hardware."""
        return Ailments(self.directory, self.hardware, self.faults)

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The unit's log file: standard output and standard error of every start."""
        return self.directory / "log" / "sglang.log"

    @property
    def home(self) -> Path:
        """Home of the server's user."""
        return self.directory / "home"

    @property
    def tmp(self) -> Path:
        """The temporary directory of the server."""
        return self.directory / "tmp"

    @property
    def triton_dir(self) -> Path:
        """Triton's cache."""
        return self.home / ".cache" / "sglang" / "triton"

    @property
    def inductor_dir(self) -> Path:
        """Inductor's cache: that of the unit's environment, or the default of 0.5.11 where the unit names none."""
        if self.inductor_is_default:
            return self.tmp / f"torchinductor_{pwd.getpwuid(os.getuid()).pw_name}"
        return self.home / ".cache" / "sglang" / "inductor"

    @property
    def inductor_is_default(self) -> bool:
        """Whether the unit says nothing about Inductor's cache."""
        return not {"cache-in-tmp", "cache-private-tmp"}.isdisjoint(self.faults)

    def caches_of(self, start: int) -> tuple[Path, Path]:
        """Triton's and Inductor's cache at a start."""
        if self.acts("cache-relocated", start):
            return self.home / "other" / "triton", self.home / "other" / "inductor"
        return self.triton_dir, self.inductor_dir

    def triton_of(self, start: int) -> str:
        """Triton's version at a start."""
        return "3.7.0" if self.acts("cache-upgraded", start) else "3.6.0"

    @property
    def model(self) -> str:
        """The model that is really served."""
        return WRONG_MODEL if "wrong-model" in self.faults else MODEL

    @property
    def stop_timeout_s(self) -> float:
        """TimeoutStopSec of the unit, wall seconds."""
        return 5.0 if "sigterm-ignored" in self.faults else 90.0

    @property
    def lost_limit(self) -> tuple[int, ...]:
        """Cards whose limit falls back to the default."""
        return (FALLING_BACK,) if "power-limit-lost" in self.faults else ()

    @property
    def traits(self) -> dict[int, Trait]:
        """What single cards have of their own, by index; on a smaller rig it is the last card."""
        last = self.hardware.gpu.count - 1
        return {min(index, last): trait for fault, (index, trait) in TRAITS.items() if fault in self.faults}

    @property
    def not_persistent(self) -> tuple[int, ...]:
        """Cards whose persistence mode is off."""
        return (min(NOT_PERSISTENT, self.hardware.gpu.count - 1),) if "persistence-off" in self.faults else ()

    @property
    def unreadable(self) -> dict[int | None, tuple[str, ...]]:
        """Power readings ("energy", "instant") that cards do not give."""
        last = self.hardware.gpu.count - 1
        return {
            None if card is None else min(card, last): names
            for fault in UNREADABLE
            if fault in self.faults
            for card, names in UNREADABLE[fault].items()
        }

    def acts(self, fault: str, start: int) -> bool:
        """Whether ``fault`` acts in the rig's start number ``start`` (1 = the first)."""
        if fault not in self.faults:
            return False
        return start > 1 or self.faults_at_once or not FAULTS[fault].of_a_start

    def save(self) -> None:
        """Write it, at once or not at all."""
        plain = asdict(self) | {"directory": str(self.directory)}
        write_json(self.directory / NAME, plain)

    @classmethod
    def load(cls, directory: Path) -> Config:
        """The rig in ``directory``. Raises FileNotFoundError where there is none, or one that was never finished."""
        raw = json.loads((Path(directory) / NAME).read_text(encoding="utf-8"))
        raw |= {"directory": Path(directory), "uuids": tuple(raw["uuids"]), "faults": tuple(raw["faults"])}
        return cls(**raw)


def write_json(path: Path, value: object) -> None:
    """Write JSON beside ``path`` and rename it: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1), encoding="utf-8")
    beside.rename(path)


def boot_id() -> str:
    """This boot of the machine: CLOCK_MONOTONIC means nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def new_uuids(count: int) -> tuple[str, ...]:
    """UUIDs for the cards of a new rig: locks are kept per UUID, so two rigs must not share one."""
    return tuple(f"GPU-{uuid.uuid4()}" for _ in range(count))
