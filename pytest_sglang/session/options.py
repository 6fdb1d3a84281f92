"""What one run was asked to do, frozen; made from the command line by pytest_sglang.options or by a command line tool."""

from __future__ import annotations

from pathlib import Path

from pytest_sglang.record.values import Value

SIMULATED = "simulated"
"""``--rig=simulated``: the packaged six-3090 promise on the embedded simulated hardware."""


class BaselineWish(Value, frozen=True, kw_only=True):
    """``--sglang-baseline``: save this run under ``name``, or compare it with the one of that name."""

    save: bool
    name: str


class RunOptions(Value, frozen=True, kw_only=True):
    """Settings of one run. Nothing is stopped and nothing is changed unless ``allow_restart``, ``allow_cold`` or ``set_power``."""

    rootdir: Path
    rig: str | None = None
    power_levels_w: tuple[float, ...] = ()
    url: str | None = None
    set_power: bool = False
    allow_restart: bool = False
    allow_cold: bool = False
    plan: bool = False
    level: int = 2
    max_slowdown_pct: float = 5.0
    strict: bool = False
    require_all: bool = False
    keep_cold_cache: bool = False
    report_dir: Path = Path("reports")
    log: str | None = None
    baseline: BaselineWish | None = None
    output_format: str | None = None
    """"github", "plain", or None: as the surroundings tell."""
    faults: tuple[str, ...] = ()
    simulated_dir: Path | None = None

    @property
    def simulated(self) -> bool:
        """Everything observed comes from the simulated rig, and says so."""
        return self.rig == SIMULATED

    @property
    def may_restart(self) -> bool:
        """The simulated rig is nobody's property: restarts, cold starts and power levels are allowed there."""
        return self.allow_restart or self.allow_cold or self.simulated

    @property
    def may_go_cold(self) -> bool:
        """Whether the caches may be set aside for a cold start."""
        return self.allow_cold or self.simulated

    @property
    def may_set_power(self) -> bool:
        """Whether a power limit may be set (and is put back)."""
        return self.set_power or self.simulated
